"""What an experiment takes on a TPU slice: its programs are compiled here, without a TPU, and priced."""
