"""Alignment, shown on people's ratings of short texts: `sentiment` (experiment A), `directed` (B), run by `harness`."""
