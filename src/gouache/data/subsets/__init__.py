"""Sets of several folders, each with its own rules, and the pictures that belong to pictures."""
