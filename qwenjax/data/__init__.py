"""Text to token shards, shards to batches; chat data in one schema, encoded. Row r of a run is f(seed, r); no jax here.

This file imports nothing, so that `--help` and tokenising processes start without grain, which loads jax.
"""
