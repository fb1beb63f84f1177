"""The native HTTP API, and two that are compatible with other tools."""
