"""What a captured trace says, as text: where the time of a training step goes, and the memory."""
