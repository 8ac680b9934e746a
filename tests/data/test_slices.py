"""Rows to documents: fields joined, rows grouped, and everything left out counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.config import Source
from qwenjax.sources import slices
from qwenjax.sources.slices import Document, Report, Slice, rows_to_documents


def read(values, report=None, share=1.0, **reading):
    """Documents of rows whose origins are '0', '1', …"""
    piece = Slice("jsonl", "f", "f", 0, source=Source(text="f", **reading), share=share)
    return list(
        rows_to_documents(
            ((str(i), row) for i, row in enumerate(values)), piece, Report() if report is None else report
        )
    )


def texts(values, report=None, **reading):
    return [document.text for document in read(values, report, **reading)]


def test_columns_are_joined_in_the_order_asked_and_what_is_absent_is_left_out():
    values = [
        {"text": "body", "title": "T", "n": 1},
        {"text": "no title", "title": None},
        {"text": "empty title", "title": " "},
        {"title": "only a title"},
    ]
    report = Report()
    assert texts(values, report, column=("title", "text"), join=": ") == [
        "T: body",
        "no title",
        "empty title",
        "only a title",
    ]
    assert not report
    assert texts(values[:1], column=("text", "title")) == ["body\n\nT"]


def test_bytes_are_text():
    assert texts([{"text": "中".encode()}, {"text": b"caf\xe9"}, {"text": b"\xff\0"}], report := Report()) == ["中"]
    assert report == {slices.NOT_UTF8: [1, "1"], slices.NUL_BYTES: [1, "2"]}


def test_mixed_schemas_are_counted_by_what_came():
    values = [{"text": v} for v in ("a", 7, None, ["x"], {"y": 1}, True, " ", 1.5)] + [{}]
    report = Report()
    assert texts(values, report) == ["a"]
    assert report == {
        "field 'text' is a number, not text": [2, "1"],
        "field 'text' is a list, not text": [1, "3"],
        "field 'text' is an object, not text": [1, "4"],
        "field 'text' is true or false, not text": [1, "5"],
        "empty document": [1, "6"],
        "no field 'text'": [2, "2"],
    }


def test_a_column_that_no_row_has_is_named_with_those_there_are():
    report = Report()
    assert texts([{"id": 1, "body": "x"}, {"id": 2}], report) == []
    assert report == {"no field 'text'; there are: id, body": [2, "0"]}
    report = Report()
    assert texts([{"text": "x", "id": 1}] * 3, report, column=("titel", "text"), group="gruop") == ["x"] * 3
    assert report == {
        "field 'titel', which no row has; there are: text, id": [1, "0"],
        "field 'gruop', which no row has; there are: text, id": [1, "0"],
    }


def test_consecutive_rows_of_a_group_are_one_document():
    pages = [("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"), (None, "5"), (None, "6"), ("c", None), ("c", "8")]
    values = [{"book": book, "text": text} for book, text in pages]
    report = Report()
    assert read(values, report, group="book", join="|") == [
        Document("1|2", "0"),
        Document("3", "2"),
        Document("4", "3"),
        Document("5", "4"),  # without a book, a page is a document of its own
        Document("6", "5"),
        Document("8", "6"),
    ]
    assert report == {"no field 'text'": [1, "6"]}


def test_a_group_is_bounded(monkeypatch):
    monkeypatch.setattr(slices, "LIMIT", 100)
    values = [{"text": "x" * 30, "book": 1}] * 50 + [{"text": "good", "book": 2}]
    report = Report()
    assert texts(values, report, group="book") == ["good"]
    assert report == {"group over 0 MiB": [1, "0"]}


@given(st.floats(0, 1), st.lists(st.text(min_size=1), unique=True, max_size=50))
def test_a_sample_depends_on_names_only_and_grows_with_its_share(share, origins):
    def kept(share):
        piece = Slice("jsonl", "f", "f", 0, share=share)
        return {origin for origin in origins if piece.keeps(origin)}

    assert kept(share) == kept(share) <= kept(1.0) == set(origins)
    assert kept(share / 2) <= kept(share)
    assert kept(0.0) == set()


def test_options_are_checked():
    for wrong, message in [
        ({"column": "article"}, "wanted a tuple of names"),
        ({"column": ()}, "at least one column"),
        ({"column": ("",)}, "wanted a tuple of names"),
        ({"limit": -1}, "limit=-1 must not be negative"),
        ({"include": "*.py"}, "wanted a tuple"),
    ]:
        with pytest.raises(ValueError, match=message):
            Source(text="x", **wrong)
    with pytest.raises(ValueError, match=r"\['limit'\] are about text, but the source has shards"):
        Source(shards="x", limit=5)
    assert Source(text="x", weight=3.0).reading == {}
    assert Source(text="x", column=("a",), limit=9).reading == {"column": ("a",), "limit": 9}
