"""Statistics of a corpus: hand-counted numbers, bounded memory, and what the command prints."""

import json
from collections import Counter

import pytest
from data_doubles import ByteTokenizer, corpus

from qwenjax.data.__main__ import main
from qwenjax.data.inspect import stats as room
from qwenjax.data.inspect.stats import Stats, language
from qwenjax.data.shards.write import tokenize

pytest_plugins = ["data_fixtures"]
ENGLISH = "It is a truth universally acknowledged, that a single man in possession of a good fortune wants a wife."
CHINESE = "他们每天早上都要坐公共汽车去学校上课，晚上回家以后还要做很多作业，周末才能和朋友们一起出去玩。"
CODE = "def f(x):\n    return {k: v[0] for k, v in x.items() if (k, v) != (1, [2])}\n"


def of(texts: list[str]) -> Stats:
    stats = Stats()
    for i, text in enumerate(texts):
        stats.add(text, len(text), len(text.encode()), f"doc-{i}")
    return stats


def test_numbers_counted_by_hand():
    stats = of(["abc", "两个字", "x" * 1000])
    assert (stats.documents, stats.tokens, stats.bytes, stats.characters) == (3, 1006, 3 + 9 + 1000, 1006)
    assert stats.longest == (1000, "doc-2")
    assert stats.percentile(0.5) == 3
    assert stats.percentile(1.0) == 1000
    assert Stats().percentile(0.5) == 0


def test_percentiles_and_histogram_are_those_of_the_lengths():
    lengths = [0, 1, 1, 2, *(int(1.001**i) for i in range(0, 9000, 30))]
    stats = of(["x" * n for n in lengths])
    for share in (0.1, 0.5, 0.9, 0.99):
        at_most = sum(n <= stats.percentile(share) for n in lengths)
        below = sum(n < stats.percentile(share) for n in lengths)
        assert below < share * len(lengths) <= at_most
    histogram = stats.to_dict(0)["histogram"]
    assert histogram[0] == [0, 1, 1]
    for low, high, n in histogram:
        assert n == sum(low <= length < high for length in lengths) > 0
        assert high <= max(low + 1, low * 2 ** (1 / 8) + 1)
    assert sum(n for _, _, n in histogram) == len(lengths)


def test_repeated_lines_are_found_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(room, "LINES", 1000)
    stats, seen = Stats(), Counter()
    for i in range(300):
        lines = [f"a line that is seen only once, number {i}-{j}" for j in range(40)] + ["All rights reserved by us."]
        if i % 3 == 0:
            lines.append("另一行经常重复的文字")  # 10 characters, 30 bytes
        seen.update(lines)
        stats.add("\n".join([*lines, "}", "  short  "]), 1, 1, "x")
        assert len(stats.lines) <= 1000
    found = stats.repeated(5)
    assert [line for _, line in found] == ["All rights reserved by us.", "另一行经常重复的文字"]
    for n, line in found:  # lossy counting forgets at most one memory's share of the lines
        assert seen[line] - stats.counted / 1000 <= n <= seen[line]


def test_every_document_is_sampled_with_the_same_probability(monkeypatch):
    monkeypatch.setattr(room, "SAMPLE", 100)
    stats = of([str(i) for i in range(10_000)])
    kept = [int(text) for text, _ in stats.excerpts]
    assert len(set(kept)) == 100
    assert 4_000 < sum(kept) / 100 < 6_000  # 3.5 standard deviations


def test_languages_by_documents_and_bytes():
    pytest.importorskip("py3langid")
    assert [language(text) for text in (ENGLISH, CHINESE, CODE)] == ["en", "zh", "code"]
    shares = of([ENGLISH, ENGLISH, CHINESE, CODE * 10]).languages
    assert shares["en"][0] == 0.5
    size = {"en": 2 * len(ENGLISH), "zh": len(CHINESE.encode()), "code": 10 * len(CODE)}
    for name, n in size.items():
        assert shares[name][1] == pytest.approx(n / sum(size.values()))


def test_without_py3langid_the_rest_is_told(monkeypatch):
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    said = room.table({"a": of([ENGLISH])}, 10)
    assert "pip install 'qwenjax[data]'" in said
    assert "documents" in said


def test_text_and_its_shards_give_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room, "load_tokenizer", lambda name: ByteTokenizer())
    texts = corpus(tmp_path / "a.jsonl", 120)
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("broken\n")
    tokenize([tmp_path / "a.jsonl"], tmp_path / "shards", ByteTokenizer(), validation=0.2, progress=False)
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "shards")]
    assert main(["stats", *names, "--json", f"--png={tmp_path / 'x.png'}", "--lines=3"]) == 0
    done = capsys.readouterr()
    got = json.loads(done.out)
    text, shards = (got[name] for name in names)
    assert text["documents"] == len(texts)
    assert text["bytes"] == sum(len(t.encode()) for t in texts.values())
    assert text["bytes_per_token"] == 1
    for name in ("documents", "tokens", "bytes", "characters", "histogram", "repeated_lines"):
        assert text[name] == shards[name]
    assert got["skipped"] == {"bad JSON line": [1, got["skipped"]["bad JSON line"][1]]}
    assert "skipped 1 x bad JSON line" in done.err
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert main(["stats", *names, "--verify"]) == 0
    done = capsys.readouterr()
    assert f"{names[1]}: every file is as it was written" in done.err
    assert "documents" in done.out
    shard = next((tmp_path / "shards").glob("train-*[0-9].array_record"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert main(["stats", names[1], "--verify"]) == 1
    assert f"{shard.name} has changed since it was written" in capsys.readouterr().err
    assert main(["stats", str(tmp_path / "nowhere")]) == 1
    assert "error: no file or folder" in capsys.readouterr().err
