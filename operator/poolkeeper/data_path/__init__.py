"""Whether statements get through the poolers. Pure."""
