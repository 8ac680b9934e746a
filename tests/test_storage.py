"""Paths in buckets: what is written, logged, saved and resumed there is what it would be on a disk."""

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_checkpoint import abstract, tree

from qwenjax import checkpoint
from qwenjax.checkpoint import Checkpoints
from qwenjax.common import hashing, jsonl, storage
from qwenjax.common.jsonl import Log, read_rows

pytest_plugins = ["bucket_fixtures"]


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket")


def inside(folder) -> dict[str, bytes]:
    """Name -> content of everything below a folder."""
    found = {}
    for path in storage.files(folder):
        found |= {f"{path.name}/{k}": v for k, v in inside(path).items()} if path.is_dir() else {path.name: None}
    return {name: data if data is not None else (folder / name).read_bytes() for name, data in found.items()}


# ---- paths ----


def test_a_local_path_stays_one_and_a_bucket_is_known_however_it_is_spelt(tmp_path):
    assert type(storage.path("runs/a")) is type(Path())
    assert storage.absolute("runs/a") == Path("runs/a").resolve()
    for spelt in ("gs://bucket/run", Path("gs://bucket/run"), storage.path("gs://bucket/run")):
        path = storage.path(spelt)
        assert storage.remote(path)
        assert str(path / "config.json") == "gs://bucket/run/config.json"
        assert str(storage.absolute(spelt)) == "gs://bucket/run"
    assert not storage.remote(tmp_path)


def test_another_store_or_a_missing_library_is_refused_with_a_remedy(monkeypatch):
    with pytest.raises(ValueError, match=r"s3://bucket/run: wanted a local path or gs://"):
        storage.path("s3://bucket/run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'qwenjax\[gcs\]'"):
        storage.path("gs://bucket/run")
    assert storage.path("run") == Path("run")


def test_files_are_written_whole_and_listed(folder):
    assert storage.files(folder / "absent") == []
    for text in ("first, and longer", "second"):
        storage.write_atomically(folder / "a.txt", text)
    storage.write_atomically(folder / "b.bin", b"\x00\xff")
    assert [path.name for path in storage.files(folder)] == ["a.txt", "b.bin"]
    assert inside(folder) == {"a.txt": b"second", "b.bin": b"\x00\xff"}


def test_json_and_rows_are_utf8(folder):
    value = {"text": "é 中\n", "numbers": [1, 2.5, None]}
    storage.write_json(folder / "a.json", value)
    jsonl.write_rows(folder / "b.jsonl", [value, {"step": 1}])
    assert json.loads((folder / "a.json").read_bytes()) == value
    assert read_rows(folder / "b.jsonl") == [value, {"step": 1}]
    for name in ("a.json", "b.jsonl"):
        assert "中".encode() in (folder / name).read_bytes()
    assert sorted(inside(folder)) == ["a.json", "b.jsonl"]  # nothing temporary stays


def test_checksums_never_change(tmp_path):
    """Values of the functions under which shards, caches and orders of data were written."""
    (tmp_path / "a").write_bytes(b"123456789")
    assert hashing.size_and_crc32(tmp_path / "a") == {"size": 9, "crc32": 0xCBF43926}  # the check value of CRC-32
    assert hashing.json_digest([1, "é"], size=4) == "aebb5962"
    assert hashing.keyed_hash("split", 3, "é") == 12636076140906780759


def test_a_folder_moves_with_all_that_is_in_it(folder):
    (folder / "from" / "deep").mkdir(parents=True)
    for name in ("from/a", "from/deep/b"):
        storage.write_atomically(folder / name, name)
    storage.move(folder / "from", folder / "new" / "to")
    assert inside(folder) == {"new/to/a": b"from/a", "new/to/deep/b": b"from/deep/b"}
    assert not (folder / "from").exists()


def test_what_is_written_to_the_local_copy_arrives(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name, deep in (("trace", "plugins/x.pb"), ("stacks.txt", "")):
        local = storage.local_copy(folder / name)
        (local / deep).parent.mkdir(parents=True, exist_ok=True)
        (local / deep).write_bytes(b"said")
        storage.upload(folder / name)
    storage.upload(folder / "nothing was written")
    assert {"trace/plugins/x.pb", "stacks.txt"} <= set(inside(folder))
    if storage.remote(folder):
        assert not local.exists()


# ---- logs ----


def steps(path):
    return [row["step"] for row in read_rows(path)]


def logged(path, numbers, keep=0):
    log = Log(path, lambda row: row["step"] <= keep)
    for step in numbers:
        log.add({"step": step, "text": "x" * 40})
    log.flush()
    return log


def test_a_log_is_cut_back_and_goes_on_wherever_it_lies_and_however_many_parts_it_has(folder, monkeypatch):
    """Each part has about three rows, and rows are written at once."""
    monkeypatch.setattr(jsonl, "PART", 150)
    monkeypatch.setattr(jsonl, "HOLD", -1.0)
    path = folder / "metrics.jsonl"
    assert read_rows(path) == []
    logged(path, range(1, 21))
    assert steps(path) == list(range(1, 21))
    assert len(jsonl.parts(path)) == (7 if storage.remote(path) else 1)
    for keep in (17, 12, 11, 3, 2):  # within a part, and between two
        logged(path, range(keep + 1, keep + 3), keep)
        assert steps(path) == list(range(1, keep + 3))
    logged(path, [1])  # a fresh run inherits nothing
    assert inside(folder) == {"metrics.jsonl": b'{"step": 1, "text": "' + b"x" * 40 + b'"}\n'}


def test_rows_are_dropped_from_the_middle_too(folder, monkeypatch):
    """Events without a row number stay when those beyond the checkpoint go."""
    monkeypatch.setattr(jsonl, "PART", 50)
    monkeypatch.setattr(jsonl, "HOLD", -1.0)
    logged(folder / "events.jsonl", range(1, 10))
    Log(folder / "events.jsonl", lambda row: row["step"] % 3 == 0)
    assert steps(folder / "events.jsonl") == [3, 6, 9]


def test_a_kill_takes_a_minute_of_rows_at_most_from_a_bucket_and_none_that_were_flushed(bucket, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Log(bucket / "metrics.jsonl", lambda row: True)
    seen = []
    for step in range(1, 8):
        log.add({"step": step})
        seen.append(len(read_rows(log.path)))
        now[0] += 25
    assert seen == [1, 1, 1, 4, 4, 4, 7]
    log.add({"step": 8})
    log.flush()
    assert steps(log.path) == list(range(1, 9))


def test_a_log_taken_from_a_bucket_to_a_disk_is_read_and_goes_on_there(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "PART", 150)
    monkeypatch.setattr(jsonl, "HOLD", -1.0)
    logged(bucket / "metrics.jsonl", range(1, 9))
    for name, data in inside(bucket).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "metrics.jsonl"
    assert steps(path) == list(range(1, 9))
    logged(path, range(8, 11), keep=7)
    assert steps(path) == list(range(1, 11))


# ---- checkpoints ----


@pytest.fixture
def saved(bucket, tmp_path):
    """Steps 1 to 3 in a bucket."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"pieces")
    checkpoints = Checkpoints(bucket / "checkpoints", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, *tree(step), {"next_row": 10 * step}, tmp_path / "tokenizer")
    checkpoints.close()
    return bucket


def damage(step):
    """Flips a bit of the largest object of the parameters."""
    name, data = max(((n, d) for n, d in inside(step / "params").items() if "d/" in n), key=lambda pair: len(pair[1]))
    storage.write_atomically(step / "params" / name, data[:50] + bytes([data[50] ^ 1]) + data[51:])


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside_whole_and_its_place_is_free(saved, tmp_path):
    aside = []
    for name in ("3", "3-again"):
        damage(saved / "checkpoints" / "3")
        aside.append(inside(saved / "checkpoints" / "3"))
        checkpoints = Checkpoints(saved / "checkpoints")
        got = checkpoints.restore(*abstract(tree()))
        assert (got.step, got.meta["next_row"]) == (2, 20)
        np.testing.assert_array_equal(got.params["w"], tree(2)[0]["w"])
        assert "step 3 is damaged" in checkpoints.damaged[0]
        assert inside(saved / "damaged" / name) == aside[-1]
        checkpoints.save(3, *tree(3), {"next_row": 30}, tmp_path / "tokenizer")
        checkpoints.close()
    assert inside(saved / "damaged" / "3") == aside[0]  # what was set aside first is still there
    got = checkpoint.load(checkpoint.newest(saved), *abstract(tree()))
    assert got.step == 3
    for a, b in zip(jax.tree.leaves((got.params, got.train_state)), jax.tree.leaves(tree(3))):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_save_that_a_kill_cut_short_does_not_count(saved):
    """In a bucket nothing is renamed: a step is whole when its last object says so."""
    (saved / "checkpoints" / "3" / "commit_success.txt").unlink()
    assert checkpoint.newest(saved).name == "2"
    assert Checkpoints(saved / "checkpoints").restore(*abstract(tree())).step == 2


def test_forgetting_and_keeping_in_a_bucket(saved, tmp_path):
    checkpoints = Checkpoints(saved / "checkpoints", keep=2)
    checkpoints.forget(1)
    assert checkpoints.steps() == [1]
    for step in (5, 6):
        checkpoints.save(step, *tree(step), {"next_row": step}, tmp_path / "tokenizer")
    checkpoints.close()
    assert {path.name for path in storage.files(saved / "checkpoints")} == {"5", "6"}
