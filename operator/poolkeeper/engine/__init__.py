"""What is known of PgBouncer's releases: versions, faults, settings. Pure."""
