"""How many server connections each pooler may hold, so that max_connections is never exceeded. Pure."""
