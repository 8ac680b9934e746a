"""Makes and compares vocabularies: train (and extend), merges, compression and its figure."""
