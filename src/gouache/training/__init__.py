"""Training: stages, losses, state, loop, evaluation (layer 5)."""
