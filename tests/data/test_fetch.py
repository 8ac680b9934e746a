"""Shards in a bucket: copied once, whole, and not half; what does not fit or is not what was written is refused."""

import json
from collections import namedtuple

import pytest

from qwenjax.common import storage
from qwenjax.data.shards import prepare as room
from qwenjax.data.shards.format import Shards
from qwenjax.data.shards.prepare import fetch, prepare

pytest_plugins = ["data_fixtures", "bucket_fixtures"]


@pytest.fixture
def remote(shards, bucket):
    """The fixture `shards`, in a bucket as well."""
    where = bucket / "corpus"
    for file in shards.directory.rglob("*"):
        if file.is_file():
            storage.write_atomically(where / str(file.relative_to(shards.directory)), file.read_bytes())
    return where


def test_a_copy_is_the_same_shards_and_made_once(remote, shards, tmp_path, monkeypatch):
    folder = fetch(str(remote), tmp_path / "data", progress=False)
    copied = Shards(folder)
    copied.verify()
    assert list(map(str, copied.all_documents("train"))) == list(map(str, shards.all_documents("train")))
    assert (folder / "tokenizer" / "bytes.txt").read_bytes() == (remote / "tokenizer" / "bytes.txt").read_bytes()
    monkeypatch.setattr(room, "_copy", None)
    assert fetch(str(remote), tmp_path / "data", progress=False) == folder


def test_a_copy_cut_short_goes_on_and_shards_made_anew_are_copied_anew(remote, tmp_path, monkeypatch):
    copied, whole = [], room._copy

    def failing(source, folder, file, step):
        if len(copied) == 2:
            raise OSError("the network is gone")
        copied.append(file["name"])
        whole(source, folder, file, step)

    monkeypatch.setattr(room, "THREADS", 1)
    monkeypatch.setattr(room, "_copy", failing)
    with pytest.raises(OSError, match="the network is gone"):
        fetch(str(remote), tmp_path / "data", progress=False)
    again = []
    monkeypatch.setattr(room, "_copy", lambda s, f, file, step: (again.append(file["name"]), whole(s, f, file, step)))
    folder = fetch(str(remote), tmp_path / "data", progress=False)
    Shards(folder).verify()
    assert again
    assert not set(again) & set(copied)
    index = json.loads((remote / "index.json").read_bytes())
    storage.write_atomically(remote / "index.json", json.dumps(index | {"remade": True}))
    assert fetch(str(remote), tmp_path / "data", progress=False) != folder


def test_what_cannot_be_copied_is_refused_with_a_remedy(remote, shards, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no finished shards: it has no index.json"):
        fetch(str(remote / "nothing"), tmp_path / "data")
    with pytest.raises(ValueError, match=r"is in a bucket.*mount the bucket"):
        Shards(str(remote))
    name = next(iter(shards.index["splits"]["train"]["files"]))["files"]["tokens"]["name"]
    storage.write_atomically(remote / name, b"other bytes")
    with pytest.raises(ValueError, match=f"{name} is not the file that was written"):
        fetch(str(remote), tmp_path / "data", progress=False)
    assert not list((tmp_path / "data").glob("*/index.json"))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(ValueError, match=r"has 1,000 bytes free: mount the bucket"):
        fetch(str(remote), tmp_path / "data", progress=False)
    storage.write_atomically(remote / "index.json", "{}")
    with pytest.raises(ValueError, match="is not an index of shards"):
        fetch(str(remote), tmp_path / "data", progress=False)


def test_an_experiment_may_name_shards_in_a_bucket(remote, tokenizer, tmp_path, monkeypatch):
    from qwenjax.config import Data, Source

    monkeypatch.setattr("qwenjax.tokenizer.load_tokenizer", lambda name: tokenizer)
    _, (opened,), said = prepare(Data((Source(shards=str(remote)),), tokenizer="bytes"), 0, tmp_path / "data", False)
    assert opened.directory.parent == tmp_path / "data"
    assert "tokens in" in said[-1]
