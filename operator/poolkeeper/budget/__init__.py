"""Who may hold how many server connections, so that max_connections is never exceeded. Pure."""
