"""Keepers: what an app pod gets, and the Secret that they mount. Pure."""
