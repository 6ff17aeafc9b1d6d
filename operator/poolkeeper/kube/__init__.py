"""The API server: the only Kubernetes I/O."""
