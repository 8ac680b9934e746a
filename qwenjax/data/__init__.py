"""Text to token shards, shards to rows. Row r of a run is f(seed, r); nothing here knows jax.

    sources   files, folders and the standard library as documents; broken input counted by reason
    tokenize  documents -> shuffled ArrayRecord shards, in parallel, restartable
    shards    the directory that tokenize writes: random access to tokens and documents
    order     which window row r is: pure index arithmetic
    stream    rows, batches, held-out rows: what a training loop reads
    prepare   an experiment's `data` -> tokenizer and shards, made once

This file imports nothing, so `--help` and tokenising workers start without grain, which loads jax.
"""
