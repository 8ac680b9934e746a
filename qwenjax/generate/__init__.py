"""Text from a model: sampling policies as values, and the decode loop."""
