"""The real cluster, the images and the end-to-end parts: development tools, never part of the operator."""
