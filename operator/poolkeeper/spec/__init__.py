"""Reads and checks what users write: a PooledDatabase. Pure."""
