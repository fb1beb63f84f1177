"""Batches for the stages: encoded examples, captioned pairs, sources and shapes."""
