"""The namespaces that consume a database: consent, names at the pooler, connection URLs. Pure."""
