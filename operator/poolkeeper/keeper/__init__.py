"""Keepers: their injection into app pods, and the Secret that they mount. Pure."""
