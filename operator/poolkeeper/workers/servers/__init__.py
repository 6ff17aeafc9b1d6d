"""Measures each PostgreSQL server, and divides its connections."""
