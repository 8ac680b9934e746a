"""Benchmarks: a file per thing that is measured, ours and a peer's interleaved in one run.

workers.py   long-lived worker processes that take turns, and their two clocks
train.py     the training step, against PyTorch
decode.py    reading a prompt and writing after it, against transformers
data.py      tokenising and the data stream
"""
