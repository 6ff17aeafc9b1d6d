"""A Kubernetes cluster for tests and the demo, behind three adapters: local, kind and existing.

Run ``python -m e2e.cluster --help``. Everything above this package needs nothing but a kubeconfig and a
way to load images, so it does not know which adapter is in use.
"""
