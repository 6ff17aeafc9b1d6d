"""The last known state of everything that is watched."""
