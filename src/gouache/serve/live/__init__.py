"""The event stream: what changes for a user, read from the store once for all who follow, and sent as it happens."""
