"""Documents from files, folders and the standard library; broken input is counted."""

import gzip
import json
import os
from fnmatch import fnmatch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_doubles import ByteTokenizer, corpus

from qwenjax.config import Source
from qwenjax.data.shards.write import tokenize
from qwenjax.sources import files
from qwenjax.sources import slices as rows
from qwenjax.sources.documents import STDLIB, Document, Report, cut, documents, read, slices


def texts(path, report=None):
    return [d.text for d in documents(path, report)]


def test_json_lines_plain_and_gzipped_are_the_same_documents(tmp_path):
    lines = [json.dumps({"text": t, "id": i}) for i, t in enumerate(["one", "zwei\r\n", "三"])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")  # no line end after the last
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    assert texts(tmp_path / "a.jsonl") == texts(tmp_path / "b.jsonl.gz") == ["one", "zwei\r\n", "三"]
    offset = len(lines[0]) + 1
    assert [d.origin for d in documents(tmp_path / "a.jsonl")][:2] == ["a.jsonl@0", f"a.jsonl@{offset}"]


@pytest.mark.parametrize("size", [1, 7, 13, 50, 1000])
def test_slices_of_a_file_hold_its_lines_once(tmp_path, size):
    """Cut anywhere, also in the middle of a line or right at its end."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in range(1, 30)))
    (whole,) = slices(path, Report())
    pieces = cut(whole, size)
    assert len(pieces) == -(-whole.size // size)
    assert [d for p in pieces for d in read(p, Report())] == list(documents(path))


def test_folder_is_read_recursively_in_order_without_hidden_or_binary_files(tmp_path):
    for name, data in {
        "b.py": b"import b\n",
        "a/z.md": b"# z\n",
        "a/rows.jsonl": b'{"text": "row"}\n',
        ".git/config.txt": b"hidden",
        "a/.secret.txt": b"hidden",
        "logo.png": b"\x89PNG\0",
        "fake.txt": b"\0\1\2",
    }.items():
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_bytes(data)
    report = Report()
    assert list(documents(tmp_path / "top", report)) == [
        Document("import b\n", "top/b.py"),
        Document("row", "top/a/rows.jsonl@0"),
        Document("# z\n", "top/a/z.md"),
    ]
    assert report == {
        "file type not read: .png": [1, "top/logo.png"],
        "NUL bytes (binary, or UTF-16: save it as UTF-8)": [1, "top/fake.txt"],
    }


def test_one_text_file_is_a_corpus_whatever_its_name(tmp_path, monkeypatch):
    """Cut at line ends; a line without end is cut between characters; nothing is lost."""
    (tmp_path / "LICENSE").write_bytes(b"\xef\xbb\xbffree\n")
    assert list(documents(tmp_path / "LICENSE")) == [Document("free\n", "LICENSE@0")]  # without the byte order mark
    monkeypatch.setattr(files, "PART", 10)
    text = "".join(f"line {i} 中文 é\n" for i in range(50))
    (tmp_path / "book").write_text(text)
    parts = list(documents(tmp_path / "book"))
    assert "".join(p.text for p in parts) == text
    assert all(p.text.endswith("\n") for p in parts)
    assert len(parts) == 50
    at = int(parts[7].origin.removeprefix("book@"))
    assert text.encode()[at:].decode().startswith(parts[7].text)
    endless = "中" * 500_000  # 1.5 MB: longer than a line may be
    (tmp_path / "endless").write_text(endless)
    parts = list(documents(tmp_path / "endless"))
    assert "".join(p.text for p in parts) == endless
    assert len(parts) == 2


def test_broken_lines_are_counted_by_reason_and_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LIMIT", 5000)
    lines = [
        b'{"text": "good 1"}',
        b'{"text": "caf\xe9"}',  # Latin-1
        b'{"text": "half \\ud800"}',  # half a surrogate pair
        b'{"text": "nul \\u0000"}',
        b"\0\0\0",
        b'{"text": "cut of',
        b'{"body": "x"}',
        b'["text"]',
        b'{"text": 7}',
        b'{"text": " \\n"}',
        b"",
        b'{"text": "' + b"x" * 9000 + b'"}',
        b"[" * 4000,  # deeper than the parser goes
        b'{"text": "good 2"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    report = Report()
    assert texts(tmp_path / "a.jsonl", report) == ["good 1", "good 2"]
    assert {reason: count for reason, (count, _) in report.items()} == {
        "invalid UTF-8 (save it as UTF-8)": 2,
        "NUL bytes (binary, or UTF-16: save it as UTF-8)": 2,
        "bad JSON line": 2,
        "no field 'text'": 1,
        "JSON line that is not an object": 1,
        "field 'text' is a number, not text": 1,
        "empty document": 1,
        "blank line": 1,
        "line over 0 MiB": 1,
    }
    assert report["invalid UTF-8 (save it as UTF-8)"][1] == "a.jsonl@19"  # the first line is 18 bytes and its end
    at = sum(len(line) + 1 for line in lines[:3])
    assert report.lines()[0] == f"skipped 2 x NUL bytes (binary, or UTF-16: save it as UTF-8) (first: a.jsonl@{at})"


def test_truncated_gzip_gives_what_is_whole(tmp_path):
    import random

    rng = random.Random(0)  # noise, so that half of the file is half of the documents
    lines = [json.dumps({"text": f"{rng.getrandbits(2048):x}"}) for _ in range(200)]
    whole = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    report = Report()
    found = texts(tmp_path / "a.jsonl.gz", report)
    assert 80 < len(found) < 120
    assert found == [json.loads(line)["text"] for line in lines[: len(found)]]
    assert list(report) == ["truncated gzip, the rest of the file"]
    (tmp_path / "b.jsonl.gz").write_bytes(b"plain text, no gzip")
    with pytest.raises(ValueError, match="corrupt gzip"):
        texts(tmp_path / "b.jsonl.gz")


def test_nothing_to_read_says_why(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"txt": 1}\n\n')
    with pytest.raises(
        ValueError, match=r"no document in .*a\.jsonl: .*1 x blank line.*1 x no field 'text'; there are: txt"
    ):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is nothing to read"):
        texts(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere"):
        texts(tmp_path / "nowhere")


def test_huge_file_is_no_document(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LIMIT", 10)
    (tmp_path / "a.txt").write_text("longer than ten")
    with pytest.raises(ValueError, match="1 x file over 0 MiB is not one document"):
        texts(tmp_path)


def test_standard_library_has_modules_and_the_reference_but_no_tests():
    report = Report()
    found = {d.origin: d.text for d in documents(STDLIB, report)}
    assert len(found) > 300
    assert 5e6 < sum(map(len, found.values())) < 5e7
    assert "class OrderedDict" in found["python-stdlib/collections/__init__.py"]
    assert "assert" in found["python-stdlib/pydoc_data/topics.py:assert"]
    assert not [o for o in found if "/test/" in o or "/tests/" in o or "-packages/" in o or "_sysconfigdata" in o]
    assert set(report) <= {"empty document", "invalid UTF-8 (save it as UTF-8)"}


def tree(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("reading", "found"),
    [
        ({}, ["a.py", "b.md", "lib/c.py", "lib/tests/d.py", "tests/e.py"]),
        ({"include": ("*.py",)}, ["a.py", "lib/c.py", "lib/tests/d.py", "tests/e.py"]),
        ({"include": ("lib/*", "*.md")}, ["b.md", "lib/c.py", "lib/tests/d.py"]),
        ({"exclude": ("tests/*",)}, ["a.py", "b.md", "lib/c.py", "lib/tests/d.py"]),
        ({"exclude": ("tests/", "*/tests/*")}, ["a.py", "b.md", "lib/c.py"]),
        ({"include": ("*.py",), "exclude": ("lib*",)}, ["a.py", "tests/e.py"]),
        ({"include": ("*.odd", "b.*")}, ["b.md", "z.odd"]),  # asked for by its suffix, a file is text
        ({"include": ("b*",)}, ["b.md"]),
        ({"include": ("*.PY",)}, []),
    ],
)
def test_patterns_choose_by_the_path_inside_the_folder(tmp_path, reading, found):
    folder = tree(tmp_path / "top", "a.py", "b.md", "lib/c.py", "lib/tests/d.py", "tests/e.py", "z.odd", "b.png")
    report = Report()
    pieces = slices(Source(text=str(folder), **reading), report)
    read_all = sorted(d.text for piece in pieces for d in read(piece, report))
    assert read_all == found
    asked = [name for name in ("b.png", "z.odd") if any(fnmatch(name, glob) for glob in reading.get("include", "*"))]
    assert set(report) == {f"file type not read: {name[-4:]}" for name in asked if name not in found}


def test_what_is_no_file_is_said(tmp_path):
    tree(tmp_path / "elsewhere", "a.txt")
    folder = tree(tmp_path / "top", "good.txt")
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    os.mkfifo(folder / "pipe.txt")  # reading it would wait for ever
    report = Report()
    assert texts(folder, report) == ["good.txt", "a.txt"]
    assert report == {
        "link to a folder, not followed": [1, "top/linked"],
        "unreadable file": [1, "top/gone.txt"],
        "not a regular file": [1, "top/pipe.txt"],
    }


def test_a_file_name_that_is_no_utf_8_is_a_name_all_the_same(tmp_path):
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    assert list(documents(tmp_path / "top")) == [Document("text", "top/caf\\xe9.txt")]
    made = tokenize([tmp_path / "top"], tmp_path / "out", ByteTokenizer(), validation=0, workers=1, progress=False)
    assert [span.origin for span, _ in made.all_documents("train")] == ["top/caf\\xe9.txt"]


# ---- limit ----


def source_of(kind, folder):
    """2,000 documents of 0 to 400 characters, about half a megabyte, in files of one kind; where they are."""
    whole = corpus(folder / "a.jsonl", 2000)
    lines = (folder / "a.jsonl").read_bytes()
    if kind == "gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
        return folder / "a.jsonl.gz", whole
    if kind == "parquet":
        pq.write_table(pa.table({"text": list(whole.values())}), folder / "a.parquet", row_group_size=100)
        return folder / "a.parquet", whole
    if kind == "list":
        (folder / "a.json").write_text(json.dumps([{"text": text} for text in whole.values()]))
        return folder / "a.json", whole
    if kind == "folder":
        (folder / "top").mkdir()
        for i, text in enumerate(whole.values()):
            (folder / "top" / f"{i}.txt").write_text(text)
        return folder / "top", whole
    return folder / "a.jsonl", whole


@pytest.mark.parametrize("kind", ["jsonl", "gz", "parquet", "list", "folder"])
def test_a_limit_takes_a_sample_from_everywhere(tmp_path, kind):
    """JSON spells this text in escapes, 1.7 bytes for each of its own, which must not make the sample smaller."""
    path, whole = source_of(kind, tmp_path)
    total = sum(len(text.encode()) for text in whole.values())
    source = Source(text=str(path), limit=total // 4)
    report = Report()
    pieces = slices(source, report)
    assert sum(piece.size for piece in pieces) == pytest.approx(total / 4, rel=0.02)
    found = [d for piece in pieces for d in read(piece, report)]
    size = sum(len(d.text.encode()) for d in found)
    assert size == pytest.approx(total / 4, rel=0.2)  # 500 of 2,000 documents: a standard deviation of 4 %
    places = [i for i, text in enumerate(whole.values()) if text in {d.text for d in found}]
    assert [sum(at <= place < at + 500 for place in places) > 80 for at in range(0, 2000, 500)] == [True] * 4
    again = [d for piece in pieces for part in cut(piece, 3000) for d in read(part, Report())]
    assert sorted(d.origin for d in again) == sorted(d.origin for d in found)  # however it is cut
    more = {d.origin for d in documents(Source(text=str(path), limit=total // 2))}
    assert {d.origin for d in found} < more
    assert len(list(documents(Source(text=str(path), limit=100 * total)))) == 2000
