"""The native HTTP API, and two that speak for other tools."""
