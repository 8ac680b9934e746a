"""Fixtures of the chat format tests: recorded goldens and two vocabularies."""

from tokenizer_fixtures import either, goldens, small, source_code  # noqa: F401 - fixtures
