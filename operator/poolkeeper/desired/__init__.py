"""What should exist: one module for each kind of object, from values to a plain dict. Pure."""
