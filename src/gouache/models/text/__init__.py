"""Texts: tokenizers, text encoders, and the stack of them that a model reads with."""
