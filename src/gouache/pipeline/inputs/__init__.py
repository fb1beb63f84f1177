"""What a request starts from: images, masks, and the start state of the latents."""
