"""Text to token shards, shards to batches; chat data in one schema, encoded. Row r of a run is f(seed, r); no jax here.

    shards/           write: documents -> shuffled ArrayRecord shards, in parallel, resumable · format: random access to
                      tokens and documents · prepare: an experiment's `data` -> tokenizer and shards, made once ·
                      publish: shards as a TensorFlow Datasets data set
    conversations/    conversations, preferences and prompts: formats of other projects, one schema, token ids on disk
    batches/          which rows a step reads, and the arrays it gets
    inspect/          what a corpus is made of · rows as people read them, on a terminal or as a page
    commands/         `python -m qwenjax.data …`

This file imports nothing, so that `--help` and tokenising processes start without grain, which loads jax.
"""
