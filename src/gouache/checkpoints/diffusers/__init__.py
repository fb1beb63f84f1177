"""Folders in diffusers' layout: their configs, reading and writing them."""
