"""The demo: from a running operator to an app that uses a pooled DATABASE_URL."""
