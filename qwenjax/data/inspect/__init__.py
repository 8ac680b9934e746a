"""What a corpus is made of, and what single rows hold."""
