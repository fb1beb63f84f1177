"""Samplers: pure generators over a descending list of sigmas, their names, and the lists of sigmas."""
