"""Checkpoints from one format to another, and the proof that the model is the same."""
