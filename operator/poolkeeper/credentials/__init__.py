"""Certificates, logins and their verifiers. Only mint.py uses randomness."""
