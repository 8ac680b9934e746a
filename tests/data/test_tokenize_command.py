"""The options of `python -m qwenjax.data tokenize` that say how text is read."""

import argparse
import json

import pytest
from data_doubles import ByteTokenizer

import qwenjax.tokenizer
from qwenjax.data.__main__ import main
from qwenjax.data.shards.format import Shards
from qwenjax.sources.arguments import escaped, names, size


@pytest.fixture
def as_bytes(monkeypatch):
    monkeypatch.setattr(qwenjax.tokenizer, "load_tokenizer", lambda name: ByteTokenizer())


def found(out):
    shards = Shards(out)
    return sorted(bytes(ids[:-1].tolist()).decode() for _, ids in shards.all_documents("train"))


def test_sizes_names_and_line_ends_as_people_write_them():
    sizes = {"0": 0, "1_000": 1000, "500MB": 5 * 10**8, "2.5 gb": 25 * 10**8, "1GiB": 1 << 30, "7kB": 7000, "3b": 3}
    assert {text: size(text) for text in sizes} == sizes
    for wrong in ("", "MB", "5 miles", "-1", "1e6", "5I"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"wanted e\.g\. 500MB"):
            size(wrong)
    assert names("title, text") == ("title", "text")
    assert escaped(r"\n--\t中") == "\n--\t中"


def test_options_reach_every_text(tmp_path, as_bytes, capsys):
    pages = [("a", "1"), ("a", "2"), ("b", "3")]
    rows = "".join(json.dumps({"book": book, "page": page, "head": "h"}) + "\n" for book, page in pages)
    for name in ("x.jsonl", "keep/y.jsonl", "keep/tests/z.jsonl", "w.txt"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_text(rows)
    out = tmp_path / "out"
    options = ["--column=page,head", "--group=book", r"--join=\n", "--validation=0", "--workers=1", f"--out={out}"]
    chosen = ["--include", "keep/*", "--include", "*.txt", "--exclude", "*/tests/*", "--exclude", "*.txt"]
    assert main(["tokenize", str(tmp_path / "top"), str(tmp_path / "top" / "x.jsonl"), *options, *chosen]) == 0
    assert found(out) == ["1\nh\n2\nh", "1\nh\n2\nh", "3\nh", "3\nh"]  # of keep/y.jsonl, and x.jsonl by its own name
    assert "is complete" in capsys.readouterr().out


def test_a_limit_and_a_missing_column(tmp_path, as_bytes, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i:09d}\n" * 10}) + "\n" for i in range(1000)))
    common = ["tokenize", str(path), "--validation=0", "--workers=1"]
    assert main([*common, f"--out={tmp_path / 'part'}", "--limit=50KB"]) == 0
    assert 400 < len(found(tmp_path / "part")) < 600
    capsys.readouterr()
    assert main([*common, f"--out={tmp_path / 'none'}", "--column=body"]) == 1
    assert "1,000 x no field 'body'; there are: text" in capsys.readouterr().err
    assert main([*common, f"--out={tmp_path / 'bad'}", "--column=,"]) == 2
    assert "wanted a tuple of names" in capsys.readouterr().err
