"""Input of changes: watches, and the resync that repairs what they miss."""
