"""What was seen of the cluster, as values. Nothing here knows where they came from."""
