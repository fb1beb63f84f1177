"""The training phase: stages, losses, state, loop, evaluation (layer 5)."""
