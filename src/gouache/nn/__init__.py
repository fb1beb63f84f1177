"""Blocks that know tensors, not diffusion (layer 2)."""
