"""Fixtures of the data tests, which name it in `pytest_plugins`.

No conftest.py: there can be one module of that name only, and other tests import the one above.
"""

import shutil

import pytest
from data_doubles import SETTINGS, ByteTokenizer, corpus

from qwenjax.data.shards import write as room
from qwenjax.data.shards.format import Shards


def shrink(monkeypatch) -> None:
    """Many units and shards from little text."""
    monkeypatch.setattr(room, "UNIT_BYTES", (3_000, 3_000))
    monkeypatch.setattr(room, "SHARD_BYTES", 20_000)


@pytest.fixture
def small_units(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with corpus.jsonl, its shards and {origin: text}; made once, copied by `shards`."""
    folder = tmp_path_factory.mktemp("built")
    texts = corpus(folder / "corpus.jsonl", 300)
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        room.tokenize([folder / "corpus.jsonl"], folder / "shards", ByteTokenizer(), **SETTINGS, workers=1)
    return folder, texts


@pytest.fixture
def shards(built, tmp_path, small_units):
    """300 documents, about 70,000 tokens in several train files, pages of 500; `.texts` maps origin to text."""
    folder, texts = built
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    opened = Shards(tmp_path / "shards")
    opened.texts = texts
    return opened
