"""Floor 7: the whole loop on real input (extra `demo`)."""
