"""Work on many machines: clusters of Ray, and folders that may lie in an object store."""
