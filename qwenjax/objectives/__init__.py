"""Losses as functions of arrays: they know no model, so a test needs four numbers and no network."""
