"""From a request to a picture that carries its recipe (layer 4)."""
