"""The mathematics of diffusion: pure functions on tensors (layer 1)."""
