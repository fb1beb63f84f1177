"""Generation: passes of the sampler, guidance, drafts, decoding, edits."""
