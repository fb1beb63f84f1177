"""Training from the studio: plans, sets of pictures, runs and their processes."""
