"""Alignment, shown on people's ratings of short texts, `sentiment` (experiment A) and `directed` (B), and on a released
model, `real` (C); run by `harness`.
"""
