"""What guards the HTTP interfaces: access, rate limits, errors, health and metrics."""
