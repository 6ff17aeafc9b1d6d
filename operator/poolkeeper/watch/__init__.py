"""What brings changes in: watches, and the resync that repairs what they miss."""
