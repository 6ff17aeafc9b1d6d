"""What users write: a PooledDatabase, read and checked. Pure."""
