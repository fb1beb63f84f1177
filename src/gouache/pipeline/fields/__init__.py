"""What a request is made of: limits and types of its values, and its groups. No torch."""
