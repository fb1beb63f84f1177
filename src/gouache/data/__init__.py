"""Captioned images: readers, recipes, scenes, packed sets (layer 5)."""
