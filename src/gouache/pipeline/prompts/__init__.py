"""Prompts: their syntax, their encoding, and the adapters and layouts that they name."""
