"""The stages of training, one file each, and their registry."""
