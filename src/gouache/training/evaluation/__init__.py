"""Evaluation: what is measured of a model that paints stickers, and its card."""
