"""Which program computes a model's networks: torch, or OpenVINO from graphs of the same networks."""
