"""Poolkeeper: a Kubernetes operator that gives every app namespace a pooled PostgreSQL connection."""

__version__ = "0.1.0"
