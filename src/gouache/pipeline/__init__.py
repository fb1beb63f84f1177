"""From a request to an image with its recipe inside (layer 4)."""
