"""What was seen last of everything that is watched."""
