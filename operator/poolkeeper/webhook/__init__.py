"""The admission webhook, which injects keepers into app pods."""
