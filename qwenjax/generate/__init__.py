"""Text from a model: ways to sample as values, the decode loop, and rollouts for training."""
