"""The worker process, its models, and its supervisor."""
