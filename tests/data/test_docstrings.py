"""The standard library's docstrings as alignment data: what is taken of a module, and what of it is an answer."""

import inspect
import json
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.data.conversations import docstrings
from qwenjax.data.conversations.convert import ConversionReport, convert, convert_rows
from qwenjax.data.conversations.docstrings import first_sentence, functions, shuffled
from qwenjax.data.conversations.files import read_chat

MODULE = '''
"""Docstring of the module."""
def plain(a, b=1, *, c: int = 2) -> int:
    """Return the sum of it all.

    More about it.
    """
    def within():
        """This is nobody's business here."""

def silent():
    pass

class Box:
    """A box of things."""

    async def open(self):
        """Open the box; wait
        until it is open."""

    if True:
        def short(self):
            """Shut."""
'''


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, dict]]:
    return list(docstrings.rows())


def test_functions_and_methods_of_a_module_with_what_they_say():
    found = list(functions(MODULE, "box.py"))
    assert [one.origin for one in found] == ["box.py:3", "box.py:17"]
    assert found[0].signature == "def plain(a, b=1, *, c: int=2) -> int"
    assert found[0].summary == "Return the sum of it all."
    assert found[1].signature == "class Box:\n    async def open(self)"
    assert found[1].summary == "Open the box; wait until it is open."


@pytest.mark.parametrize("text", ["def broken(:", "print 'two'", "x = '\x00'"])
def test_a_module_that_does_not_parse_has_none(text):
    assert list(functions(text, "broken.py")) == []


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the\n    current value.  It may be None.", "Return the current value."),
        ("open(path) -> file\n\nOpen a file for reading.", ""),  # a paragraph of its own says nothing
        ("open(path) -> file\nOpen a file for reading.", "Open a file for reading."),
        ("Join a list (of e.g. words) into one", "Join a list (of e.g. words) into one"),
        ("Use version 3.11 of the protocol! Not 3.12.", "Use version 3.11 of the protocol!"),
        ("Constructor.", ""),
        (">>> add two more numbers", ""),
        ("word " * 31, ""),
        ("wörd " * 3 + "x" * 200, ""),
        ("", ""),
    ],
)
def test_the_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


@given(st.text())
def test_a_first_sentence_is_a_line_of_the_docstring_whatever_that_is(text):
    sentence = first_sentence(text)
    assert sentence in " ".join(text.split())
    assert len(sentence) <= docstrings.MAX_CHARACTERS


@given(st.lists(st.sampled_from(["a", "file", "Return", "the."]), min_size=2).filter(lambda words: len(set(words)) > 1))
def test_disorder_keeps_the_words_and_changes_their_order(words):
    sentence = " ".join(words)
    assert shuffled(sentence) != sentence
    assert Counter(shuffled(sentence).split()) == Counter(words)
    assert shuffled(sentence) == shuffled(sentence)


def test_the_library_gives_thousands_of_short_rows_about_different_functions(rows):
    assert len(rows) > 3000
    assert len({place for place, _ in rows}) == len(rows)
    assert len({row["responses"][0].lower() for _, row in rows}) == len(rows)
    assert all(len(row["prompt"]) < 350 and max(map(len, row["responses"])) <= 200 for _, row in rows)
    says = {row["prompt"].partition("of the module ")[2]: row["responses"][0] for _, row in rows}
    assert says["statistics:\n\ndef mean(data)"] == inspect.getdoc(statistics.mean).splitlines()[0]


def test_each_sentence_is_best_once_and_second_once_within_its_module(rows):
    """So that nothing about a sentence alone tells whether it is the right one; least of all its length."""
    lists = [row["responses"] for _, row in rows if len(row["responses"]) > 1]
    assert len(lists) > 0.98 * len(rows)
    assert Counter(best for best, *_ in lists) == Counter(other for _, other, _ in lists)
    assert all(best != other and sorted(mixed.split()) == sorted(other.split()) for best, other, mixed in lists)
    module = {row["responses"][0]: row["prompt"].split(":\n")[0] for _, row in rows}
    assert all(module[best] == module[other] for best, other, _ in lists)


def test_it_becomes_rows_of_every_kind(rows, tmp_path, monkeypatch):
    some = [row for row in rows if len(row[1]["responses"]) == 3][:5]
    alone = next(row for row in rows if len(row[1]["responses"]) == 1)
    monkeypatch.setattr(docstrings, "rows", lambda: iter([*some, alone]))
    prompt, (best, other, mixed) = some[0][1]["prompt"], some[0][1]["responses"]
    made = {}
    for kind in (None, "preference", "prompt"):
        account = convert(["python-stdlib"], tmp_path / "out.jsonl", to=kind)
        made[kind] = list(read_chat(tmp_path / "out.jsonl", kind or "conversation", strict=True))
        assert (account.read, account.rows) == (6, 5 if kind == "preference" else 6)
        assert account.skipped.keys() == ({"fewer than two responses"} if kind == "preference" else set())
    asked = [{"role": "user", "content": prompt}]
    assert made[None][0].messages == [*asked, {"role": "assistant", "content": best}]
    assert made["preference"][0].prompt == asked
    assert [turn["content"] for turn in made["preference"][0].responses] == [best, other, mixed]
    assert made["preference"][0].scores == [3, 2, 0]
    assert (made["prompt"][0].prompt, made["prompt"][0].answer) == (asked, best)
    assert made["prompt"][0].source == "python-stdlib"


def test_no_row_of_the_library_is_refused(rows, monkeypatch):
    monkeypatch.setattr(docstrings, "rows", lambda: iter(rows))
    account = ConversionReport()
    assert sum(1 for _ in convert_rows("python-stdlib", account, strict=True)) == len(rows)
    assert json.dumps(account.changed) == "{}"
