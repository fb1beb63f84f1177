"""The worker process, its models, and what supervises it."""
