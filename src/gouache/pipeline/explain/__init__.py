"""What each part of a model did for one picture."""
