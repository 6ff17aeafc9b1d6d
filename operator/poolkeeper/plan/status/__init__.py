"""The status of a PooledDatabase: the conditions, by subject. Pure."""
