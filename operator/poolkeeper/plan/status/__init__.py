"""The status of a PooledDatabase: one module for each condition. Pure."""
