"""Weight files: tell them apart, read them strictly, write them atomically (layer 3)."""
