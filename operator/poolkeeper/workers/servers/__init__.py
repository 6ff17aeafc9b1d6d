"""The work on each PostgreSQL server: measuring it, and dividing its connections."""
