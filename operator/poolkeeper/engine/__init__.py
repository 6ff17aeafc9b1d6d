"""Facts about PgBouncer's releases: versions, known faults, settings. Pure."""
