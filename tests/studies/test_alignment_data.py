"""What the experiments of alignment read: parts, pairs, directions, and the floors that reward models must beat."""

import json
from collections import Counter

import numpy as np
import pytest

from experiments.studies.alignment import data, directed, floor, scoring, sentiment
from experiments.studies.alignment.data import RatedPair
from qwenjax.data.conversations.schema import validate


def ends(some: list[RatedPair]) -> set[str]:
    return {text.text for pair in some for text in pair[:2]}


def test_parts_share_no_text_and_have_their_sizes(texts):
    parts = {name: {t.text for t in texts if t.part == name} for name in data.PARTS}
    assert not parts["proxy"] & parts["gold"]
    assert not (parts["proxy"] | parts["gold"]) & parts["test"]
    for name, share in data.PARTS.items():
        assert len(parts[name]) / len(texts) == pytest.approx(share, abs=0.05)
    assert data.part("A text.") == data.part("A text.")


def test_texts_that_are_cut_alike_are_one_text(tmp_path):
    long = "x" * 20 + " " + "word " * 30
    rows = [{"source": "tweets", "rating": r, "text": t} for t, r in ((long + "one", 1), (long + "two", 2), ("hi", 0))]
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = data.read(path)
    assert [(t.rating, t.whole[-3:]) for t in found] == [(1, "one"), (0, "hi")]
    assert len(found[0].text) <= data.CHARACTERS
    assert found[0].whole.startswith(found[0].text + " ")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("short", "short"),
        ("a" * 100, "a" * 80),
        ("b" * 78 + " cc dd", "b" * 78),
        ("b" * 77 + " cc dd", "b" * 77 + " cc"),
    ],
)
def test_cut(text, wanted):
    assert data.cut(text) == wanted


def test_a_word_is_asked_for_where_it_is_common(texts):
    assert {t.word for t in texts} == {"The", "A"}
    assert data.request("tweet", "RT")[-1]["content"] == 'Write a tweet that begins with "RT".'
    assert data.request("tweet", "", "negative")[-1]["content"] == "Write a negative tweet."
    assert data.request("tweet")[0] == {"role": "system", "content": ""}


def test_pairs_answer_one_request_and_are_apart(texts):
    found = data.pairs(texts)
    assert len(found) > len(texts)
    for pair in found:
        assert pair.better.rating - pair.worse.rating >= data.GAP
        assert (pair.better.kind, pair.better.word) == (pair.worse.kind, pair.worse.word)
    assert len({frozenset(p[:2]) for p in found}) == len(found)  # none twice, neither way round
    assert data.pairs(reversed(texts)) == found  # whatever the order of the file


def test_in_the_other_direction_the_other_text_is_better(texts):
    pair = data.pairs(texts)[0]
    up, down = data.both_directions([pair])
    assert (up.better, up.worse, up.direction) == (pair.better, pair.worse, "positive")
    assert (down.better, down.worse, down.direction) == (pair.worse, pair.better, "negative")
    assert up.gap == down.gap == pair.gap > 0
    assert data.both_directions([pair], plain=True) == [pair, up, down]


def test_relabelled_texts_keep_ratings_but_not_whose(texts):
    found = data.relabelled(texts)
    assert Counter(t.rating for t in found) == Counter(t.rating for t in texts)
    assert [t.text for t in found] == [t.text for t in texts]
    both = np.array([[t.rating for t in texts], [t.rating for t in found]])
    assert abs(np.corrcoef(both)[0, 1]) < 0.1


def test_rows_are_of_the_schema_and_train_on_no_test_text(texts, tmp_path):
    sentiment.make(texts, tmp_path)
    directed.make(texts, tmp_path)
    held = {t.text for t in texts if t.part == "test"}
    files = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert len(files) == 14
    for name, lines in files.items():
        rows = [json.loads(line) for line in lines]
        assert rows, name
        for row in rows:
            if not name.endswith("texts.jsonl"):
                validate(row)
            said = row.get("responses", row.get("messages", []))
            assert not held & {row.get("text", "").rpartition("\n")[2], *(turn["content"] for turn in said)}, name
    proxy, gold = (
        {r["content"] for line in files[f"{n}.jsonl"] for r in json.loads(line)["responses"]} for n in ("proxy", "gold")
    )
    assert not proxy & gold
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    sentiment.make(texts, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}  # nothing is made twice
    with pytest.raises(ValueError, match=r"texts.jsonl was made from other ratings.*another --workdir"):
        sentiment.make(texts[:-9], tmp_path)


def test_sft_of_a_direction_has_texts_of_it(texts, tmp_path):
    directed.make(texts, tmp_path)
    rating = {t.text: t.rating for t in texts}
    for line in (tmp_path / "directed.jsonl").read_text().splitlines():
        turns = json.loads(line)["messages"]
        assert ("positive" in turns[1]["content"]) == (rating[turns[2]["content"]] > 0)


def test_tuning_has_other_kinds_than_pretraining(texts):
    found = directed.comparisons(texts)
    assert {t.kind for p in found["pmp"] for t in p[:2]} == set(directed.REVIEWS)
    assert not {t.kind for p in found["rm"] + found["test"] for t in p[:2]} & set(directed.REVIEWS)
    assert not ends(found["gold"]) & (ends(found["pmp"]) | ends(found["rm"]))
    assert len(found["rm"]) <= directed.COMPARISONS


def test_the_linear_floor_learns_what_words_say(texts):
    parts = {name: data.pairs([t for t in texts if t.part == name]) for name in data.PARTS}
    found = scoring.accuracy(floor.linear_margins(parts["proxy"], parts["test"]), parts["test"])
    assert found["0.5"] > 0.97
    shuffled = data.pairs(data.relabelled([t for t in texts if t.part == "proxy"]))
    assert scoring.accuracy(floor.linear_margins(shuffled, parts["test"]), parts["test"])["0.5"] < 0.8


def test_the_linear_floor_knows_what_was_asked_for(texts):
    found = {part: data.both_directions(data.pairs([t for t in texts if t.part == part])) for part in data.PARTS}
    assert scoring.accuracy(floor.linear_margins(found["proxy"], found["test"]), found["test"])["0.5"] > 0.97
    assert scoring.accuracy(floor.length_margins(found["test"]), found["test"])["0.5"] == 0.5  # one direction wins


@pytest.mark.parametrize(
    "line", ["{", '{"source": "blogs", "rating": 1, "text": "a"}', '{"source": "tweets", "text": "a"}']
)
def test_a_row_that_is_no_rating_is_named(tmp_path, line):
    path = tmp_path / "ratings.jsonl"
    path.write_text('{"source": "tweets", "rating": 1, "text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"ratings.jsonl:2 is no rating"):
        data.read(path)


def test_the_real_ratings_make_what_the_experiments_need(shared):
    path = shared / "vader_ratings" / "ratings.jsonl.gz"
    texts = data.read(path)
    assert len(texts) == 20_047
    assert len({(t.kind, t.word) for t in texts}) > 250  # enough requests to hold some out
    test = data.pairs([t for t in texts if t.part == "test"])
    assert 0.45 < scoring.accuracy(floor.length_margins(test), test)["1"] < 0.6
