"""Consumers of a database: consent, names at the pooler, connection URLs. Pure."""
