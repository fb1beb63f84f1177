"""Networks beside the denoiser through which pictures steer it."""
