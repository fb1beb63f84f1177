"""Generation: the run of a request, guidance, drafts, decoding, edits."""
