"""Training from the studio: plans, sets of images, runs and their processes."""
