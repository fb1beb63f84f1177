"""What a request starts from: images, masks, references, and the start state of the latents."""
