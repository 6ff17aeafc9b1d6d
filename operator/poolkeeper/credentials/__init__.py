"""Certificates, logins and their verifiers. Randomness enters in mint alone."""
