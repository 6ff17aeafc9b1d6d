"""The objects that should exist: one module for each kind, from values to a plain dict. Pure."""
