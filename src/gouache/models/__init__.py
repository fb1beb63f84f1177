"""The networks, one component a file (layer 2)."""
