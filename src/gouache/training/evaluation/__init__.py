"""Evaluation of a sticker model: what is measured, and its model card."""
