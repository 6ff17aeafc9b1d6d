"""PgBouncer: the files that it reads, and its console."""
