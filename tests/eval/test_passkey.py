"""Passkey retrieval: where the key stands, and when it counts as found."""

import json

import eval_doubles as doubles
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.api.model import Model
from qwenjax.api.scoring import Likelihood
from qwenjax.eval.task import ResultCache, Settings
from qwenjax.eval.tasks.passkey import FILLER, QUESTION, measure, plot, sample, table, write_training_texts

LEAST = 280  # bytes that opening, key and question take


@given(st.integers(LEAST, 3000), st.floats(0, 1))
def test_a_text_fills_its_length_and_has_the_key_at_its_depth(length, depth):
    ids, answer = sample(doubles.Bytes(), length, depth, "52941")
    assert length - len(FILLER) < len(ids) <= length
    text = bytes(ids).decode()
    assert text.endswith(f"{QUESTION} 52941")
    assert bytes(ids[-answer:]) == b" 52941"
    before, after = text[: text.index("52941")].count(FILLER), text[text.index("52941") :].count(FILLER)
    assert before == round(depth * (before + after))


def test_a_text_too_short_for_the_question_is_refused():
    with pytest.raises(ValueError, match=r"a passkey text takes 2\d\d tokens of bytes, more than 100"):
        sample(doubles.Bytes(), 100, 0.5, "12345")


def test_found_is_what_greedy_decoding_would_write(tmp_path, monkeypatch):
    """A reader that sees the last 400 bytes only: it finds the keys that stand there, and no others."""
    seen = []

    def near(model, texts, progress):
        found = []
        for ids in texts:
            seen.append(bytes(ids))
            key = ids[-5:]
            known = bytes(key) in bytes(ids[-405:-5])
            found.append(Likelihood(np.zeros(len(ids) - 1), np.array([True] * (len(ids) - 2) + [known])))
            progress(len(ids))
        return found

    monkeypatch.setattr(Model, "likelihoods", near)
    parts = ResultCache(tmp_path, {})
    settings = Settings(lengths=(400, 1200), depths=3, trials=2)
    result = {"model": "double", "set": [], **measure(doubles.model(), settings, parts)}
    assert result["depths"] == [0, 0.5, 1]
    assert result["found"] == [[2, 2, 2], [0, 0, 2]]
    assert len(set(seen)) == 12  # every trial has a key of its own
    lines = table(result).splitlines()
    assert lines[2].split() == ["depth", "400", "1200"]
    assert lines[3].split() == ["0%", "2", "0"]
    assert lines[-1].split() == ["all", "100%", "33%"]
    plot(result, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    def none(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(Model, "likelihoods", none)
    again = measure(doubles.model(), settings, ResultCache(tmp_path, {}))
    assert again["found"] == result["found"]


def test_the_seed_decides_the_keys(tmp_path):
    model = doubles.model(blank=True)  # finds nothing; only the texts matter here
    result = measure(model, Settings(lengths=(LEAST,), depths=1, trials=1), ResultCache(tmp_path, {}))
    assert result["found"] == [[0]]
    assert result["depths"] == [0]


def test_texts_to_learn_from_have_the_answer_that_was_hidden(tmp_path):
    write_training_texts(tmp_path / "a.jsonl", 50, fillers=3, seed=0)
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(set(texts)) == 50
    for text in texts:
        question, key = text.rsplit(" ", 1)
        assert question.endswith(QUESTION)
        assert text.count(key) == 3
        assert text.count(FILLER) <= 3
    assert {text.count(FILLER) for text in texts} > {0, 1}
    write_training_texts(tmp_path / "b.jsonl", 50, fillers=3, seed=0)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
