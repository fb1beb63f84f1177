"""What a prior remembers: captioned pictures as tokens, what these leave, and what else the things are called."""
