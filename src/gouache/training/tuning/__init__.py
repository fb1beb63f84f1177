"""Teaching a finished model one's own pictures with everything chosen: plan, pictures, and the run itself (layer 5)."""
