"""Text to token shards, shards to rows; chat data in one schema. Row r of a run is f(seed, r); nothing here knows jax.

    sources   what there is to read: files, folders, data sets, the standard library; cut for parallel reading
    rows      rows to documents; broken input counted by reason · files, records: the readers behind it
    tokenize  documents -> shuffled ArrayRecord shards, in parallel, restartable · worker: what each process does
    shards    the directory that tokenize writes: random access to tokens and documents
    order     which window row r is: pure index arithmetic
    stream    rows, batches, held-out rows: what a training loop reads
    prepare   an experiment's `data` -> tokenizer and shards, made once
    stats     what a corpus is made of · show, show_html: rows as people read them
    publish   shards as a TensorFlow Datasets data set
    chat/     conversations, preferences and prompts, and other people's formats of them

This file imports nothing, so `--help` and tokenising workers start without grain, which loads jax.
"""
