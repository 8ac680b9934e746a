"""Benchmarks, one file each; our side and another one run in turns (workers.py)."""
