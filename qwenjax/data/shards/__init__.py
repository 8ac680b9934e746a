"""Token shards: text tokenised once, shuffled, for random access."""
