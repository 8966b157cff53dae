"""Floor 8: the whole loop on real input (extra `demo`)."""
