"""Captioned pictures: readers, recipes, scenes, caches (layer 5)."""
