"""Adapters in files: LoRA and its relatives, textual inversions, ControlNets."""
