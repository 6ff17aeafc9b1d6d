"""What goes on beside the runs of a PooledDatabase."""
