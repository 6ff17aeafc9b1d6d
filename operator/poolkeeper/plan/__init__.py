"""From what is observed of a PooledDatabase to what to do next. Pure."""
