"""Background work, which the runs of a PooledDatabase do not wait for."""
