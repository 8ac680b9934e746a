"""Benchmarks, one file each; our side and another one run in turns.

workers.py   worker processes that run in turns, and their two clocks
train.py     the training step, against PyTorch
decode.py    prefill and decoding, against transformers
data.py      tokenising and the data stream
"""
