"""Readers of files, and every way a file can be broken: counted with its place, and the rest is read."""

import gzip
import io
import json
import os
import random
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_doubles import ByteTokenizer

from qwenjax.config import Source
from qwenjax.data.shards.write import tokenize
from qwenjax.sources import files
from qwenjax.sources import slices as rows
from qwenjax.sources.documents import cut, documents, read, slices
from qwenjax.sources.slices import Report


def texts(source, report=None):
    return [document.text for document in documents(source, report)]


def zst(data: bytes) -> bytes:
    """One frame."""
    sink = io.BytesIO()
    with pa.CompressedOutputStream(pa.PythonFile(sink, "w"), "zstd") as stream:
        stream.write(data)
        stream.flush()
        sink.close = lambda: None
    return sink.getvalue()


def lines(values) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


@pytest.fixture(scope="module")
def noise():
    """Texts that do not compress, so that half of a packed file is half of them."""
    rng = random.Random(0)
    return [f"{rng.getrandbits(4096):x}" for _ in range(400)]


def tokenized(path, tmp_path, **options):
    """(texts of both splits, what was skipped), through the public `tokenize`."""
    made = tokenize([path], tmp_path / "out", ByteTokenizer(), workers=1, progress=False, **options)
    found = [bytes(t[:-1].tolist()).decode() for split in ("train", "validation") for _, t in made.all_documents(split)]
    return found, made.index["skipped"]


# ---- packed files ----


@pytest.mark.parametrize("pack", [gzip.compress, zst])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.txt", "folder/a.py", "folder/a.json"])
def test_packed_files_are_the_documents_of_plain_ones(tmp_path, pack, name):
    """Several members or frames, one after another, are one file."""
    data = b"one\ntwo\n" if name.endswith(("txt", "py")) else lines(["one", "zwei\r\n", "三"])
    for folder, end, content in [("plain", "", data), ("packed", ".gz" if pack is gzip.compress else ".zst", None)]:
        path = tmp_path / folder / (name + end)
        path.parent.mkdir(parents=True)
        path.write_bytes(content or pack(data[:11]) + pack(data[11:]))
    plain, packed = (
        list(documents(p / "folder" if "folder" in name else next(p.iterdir())))
        for p in (tmp_path / "plain", tmp_path / "packed")
    )
    assert [d.text for d in packed] == [d.text for d in plain]
    assert [d.origin.replace(".gz", "").replace(".zst", "") for d in packed] == [d.origin for d in plain]


@pytest.mark.parametrize(("pack", "end", "kind"), [(gzip.compress, "gz", "gzip"), (zst, "zst", "zst")])
def test_truncated_and_corrupt_streams_give_what_is_whole(tmp_path, noise, pack, end, kind):
    whole = pack(lines(noise))
    path = tmp_path / f"a.jsonl.{end}"
    path.write_bytes(whole[: len(whole) // 2])
    found, skipped = tokenized(path, tmp_path, validation=0)
    assert 100 < len(found) < 220
    assert set(found) < set(noise)
    ((reason, (count, origin)),) = skipped.items()
    assert (reason, count) == (f"truncated {kind}, the rest of the file", 1)
    assert 0.25 < int(origin.removeprefix(f"a.jsonl.{end}@")) / len(lines(noise)) < 0.55

    path.write_bytes(pack(lines(noise[:200])) + b"\xff" * 100 + pack(lines(noise[200:])))
    report = Report()
    found = texts(path, report)
    assert found == noise[: len(found)]
    assert 100 < len(found) <= 200
    assert list(report) == [f"corrupt {kind}, the rest of the file"]
    path.write_bytes(b"not packed at all")
    with pytest.raises(ValueError, match=f"corrupt {kind}"):
        texts(path)
    for name in (f"b.txt.{end}", f"c/d.txt.{end}", f"e.json.{end}"):  # text, in parts or whole
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole[:50])
        with pytest.raises(ValueError, match=f"truncated {kind}"):
            texts(path if name[0] != "c" else path.parent)


# ---- JSON ----


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
def test_a_line_of_100_mb_is_counted_in_bounded_memory(tmp_path, monkeypatch, end):
    monkeypatch.setattr(rows, "LIMIT", 1 << 20)
    path = tmp_path / f"a.jsonl{end}"
    pack = {"": bytes, ".gz": lambda data: gzip.compress(data, 1), ".zst": zst}[end]
    path.write_bytes(pack(b'{"text": "good 1"}\n{"text": "' + b"x" * 100_000_000 + b'"}\n{"text": "good 2"}\n'))
    report = Report()
    tracemalloc.start()
    assert texts(path, report) == ["good 1", "good 2"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert report == {"line over 1 MiB": [1, f"a.jsonl{end}@19"]}


def test_a_json_list_of_objects_is_rows(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(' [ {"text": "one"}, 7, {"text": 2}, {"text": "three"}]')
    report = Report()
    assert [(d.text, d.origin) for d in documents(path, report)] == [("one", "a.json#0"), ("three", "a.json#3")]
    assert report == {
        "JSON item that is not an object": [1, "a.json#1"],
        "field 'text' is a number, not text": [1, "a.json#2"],
    }
    for broken, reason in [(b'[{"text": "a"}, ', "bad JSON"), (b'[{"text": "caf\xe9"}]', rows.NOT_UTF8)]:
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=re.escape(f"1 x {reason}")):
            texts(path)
    monkeypatch.setattr(rows, "LIMIT", 100)
    path.write_text(json.dumps([{"text": "x" * 200}]))
    with pytest.raises(ValueError, match="JSON list over 0 MiB; write it as JSON lines"):
        texts(path)


def test_json_is_told_apart_by_its_beginning(tmp_path):
    """Web corpora call JSON lines .json; in a folder of code, a setting's file is a text like any other."""
    folder = tmp_path / "f"
    folder.mkdir()
    settings, objects = '{\n "name": "x"\n}\n', '[{"name": "y"}]'
    (folder / "lines.json").write_bytes(lines(["one", "two"]))
    (folder / "settings.json").write_text(settings)
    (folder / "objects.json").write_text(objects)
    assert texts(folder) == ["one", "two", objects, settings]
    assert texts(folder / "settings.json") == [settings]
    with pytest.raises(ValueError, match="no field 'text'; there are: name"):  # named on purpose, it is rows
        texts(folder / "objects.json")
    assert texts(Source(text=str(folder / "objects.json"), column=("name",))) == ["y"]
    long = lines(["x" * 200_000, "y"])
    (folder / "lines.json").write_bytes(long)
    assert texts(folder / "lines.json") == ["x" * 200_000, "y"]


# ---- Parquet ----


@pytest.fixture
def table(tmp_path):
    """1,000 rows in row groups of 100."""
    path = tmp_path / "a.parquet"
    columns = {"id": range(1000), "text": [f"row {i} 中" for i in range(1000)], "book": [i // 7 for i in range(1000)]}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path, row_group_size=100)
    return path


@pytest.mark.parametrize("size", [1, 900, 5000, 10**9])
def test_slices_of_a_parquet_file_hold_its_rows_once(table, size):
    (whole,) = slices(table, Report())
    pieces = cut(whole, size)
    assert len(pieces) == min(10, -(-whole.size // size) if size > 1 else 10)
    found = [d for piece in pieces for d in read(piece, Report())]
    assert [(d.text, d.origin) for d in found] == [(f"row {i} 中", f"a.parquet#{i}") for i in range(1000)]


def test_parquet_batches_are_bounded(table, monkeypatch):
    whole = list(documents(table))
    monkeypatch.setattr(files, "BATCH", 1)  # a row at a time
    assert list(documents(table)) == whole


def test_parquet_groups_cross_row_groups_and_are_not_cut(table):
    source = Source(text=str(table), group="book", join="+")
    (whole,) = slices(source, Report())
    assert cut(whole, 1) == [whole]
    found = list(read(whole, Report()))
    assert len(found) == 143  # 1000 / 7
    assert found[14].text == "+".join(f"row {i} 中" for i in range(98, 105))
    assert found[14].origin == "a.parquet#98"


def test_parquet_types_and_bad_text(tmp_path):
    ends = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    bad = pa.Array.from_buffers(pa.string(), 3, [None, ends, pa.py_buffer(b"a\xff\xfeb")])
    path = tmp_path / "a.parquet"
    for column in (bad, bad.cast(pa.binary()), bad.cast(pa.binary()).cast(pa.large_binary())):
        pq.write_table(pa.table({"text": column}), path)
        report = Report()
        assert texts(path, report) == ["a", "b"]
        assert report == {"invalid UTF-8 (save it as UTF-8)": [1, "a.parquet#1"]}
    pq.write_table(pa.table({"text": pa.array(["x", None, "x"]).dictionary_encode()}), path)
    assert texts(path, report := Report()) == ["x", "x"]
    assert report == {"no field 'text'": [1, "a.parquet#1"]}
    pq.write_table(pa.table({"text": [[1], [2, 3]]}), path)
    with pytest.raises(ValueError, match="2 x field 'text' is a list, not text"):
        texts(path)


def test_parquet_without_the_column_says_which_there_are(table, tmp_path):
    with pytest.raises(ValueError, match=r"1,000 x no field 'body'; there are: id, text, book \(first: a.parquet#0\)"):
        texts(Source(text=str(table), column=("body",)))


def test_damaged_row_group_is_left_out(table, tmp_path):
    """The header of its text column is overwritten: the other nine hold."""
    data = bytearray(table.read_bytes())
    at = pq.read_metadata(table).row_group(3).column(1).data_page_offset
    dictionary = pq.read_metadata(table).row_group(3).column(1).dictionary_page_offset
    at = dictionary if dictionary is not None else at
    data[at : at + 20] = b"\xff" * 20
    table.write_bytes(data)
    found, skipped = tokenized(table, tmp_path)
    assert sorted(found) == sorted(f"row {i} 中" for i in range(1000) if not 300 <= i < 400)
    assert skipped == {"damaged row group (its rows)": [100, "a.parquet#300"]}


@pytest.mark.parametrize("how", ["truncated", "magic", "junk", "nothing"])
def test_parquet_that_is_none(table, tmp_path, how):
    data = table.read_bytes()
    broken = {"truncated": data[: len(data) // 2], "magic": data[:-4] + b"XXXX", "junk": b"hello", "nothing": b""}
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.parquet").write_bytes(broken[how])
    (tmp_path / "f" / "b.jsonl").write_bytes(lines(["good"]))
    report = Report()
    assert texts(tmp_path / "f", report) == ["good"]
    ((reason, (count, origin)),) = report.items()
    assert reason.startswith("corrupt parquet (")
    assert (count, origin) == (1, "f/a.parquet")


# ---- whatever the format ----


def test_empty_files_are_counted(tmp_path):
    for name, data in {"a.jsonl": b"", "b.jsonl.gz": gzip.compress(b""), "d.txt.zst": zst(b"")}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="1 x empty file"):
            texts(tmp_path / name)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="1 x empty file"):
        texts(tmp_path / "e.parquet")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "good.txt").write_text("good")
    for name in ("a.jsonl", "b.jsonl.gz"):
        os.replace(tmp_path / name, tmp_path / "f" / name)
    found, skipped = tokenized(tmp_path / "f", tmp_path, validation=0)
    assert found == ["good"]
    assert skipped == {"empty file": [2, "f/a.jsonl"]}


def test_what_may_not_be_read_is_counted_or_strict(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b.jsonl", "c.parquet", "d.txt.gz"):
        (tmp_path / name).write_bytes(lines(["x"]))

    def locked(path, *_, **__):
        if "b.jsonl" not in str(path):
            raise PermissionError(13, "Permission denied", path)
        return open(path, "rb")

    monkeypatch.setattr(files, "open", locked, raising=False)  # as root, no mode keeps a file from being read
    monkeypatch.setattr(files.gzip, "open", locked)
    monkeypatch.setattr(pq, "ParquetFile", locked)
    report = Report()
    assert texts(tmp_path, report) == ["x"]
    top = tmp_path.name
    assert report == {"unreadable file (Permission denied)": [3, f"{top}/a.jsonl"]}
    with pytest.raises(ValueError, match="skipped 3 x unreadable file"):
        tokenize([tmp_path], tmp_path / "out", ByteTokenizer(), strict=True, workers=1, progress=False)


def test_a_text_without_lines_or_characters_is_cut_all_the_same(tmp_path, monkeypatch):
    """Bytes that continue a character that never began: cut after three of them, not collected for ever."""
    monkeypatch.setattr(files, "PART", 10)
    (tmp_path / "a.bin").write_bytes(b"\x80" * 3_000_000 + b"\ngood\n")
    report = Report()
    assert texts(tmp_path / "a.bin", report) == ["good\n"]
    ((reason, (count, origin)),) = report.items()
    assert (reason, count, origin) == ("invalid UTF-8 (save it as UTF-8)", 3, "a.bin@0")
