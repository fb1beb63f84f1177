"""ComfyUI's graphs: nodes and wires, from the picture that was saved back to what painted it."""
