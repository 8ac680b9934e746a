"""Losses as functions of arrays: they know no model, so tests use four numbers instead of a network."""
