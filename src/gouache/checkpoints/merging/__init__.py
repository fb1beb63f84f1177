"""Merges models and LoRA files into new ones, tensor by tensor."""
