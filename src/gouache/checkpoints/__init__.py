"""Weight files: detect them by content, read them strictly, write them atomically (layer 3)."""
