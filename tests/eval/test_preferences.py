"""Table 4: which pairs there are in a file, who puts them in the right order, and what is left out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model

from qwenjax.common import command_line
from qwenjax.config import Compute
from qwenjax.eval import __main__ as command
from qwenjax.eval import accuracy
from qwenjax.eval.task import ResultCache, Settings, find_task
from qwenjax.eval.tasks import preferences
from qwenjax.eval.tasks.preferences import TABLE_4, measure, read_set, table

TOKENIZER = tiny_model.tokenizer()


class Judge:
    """A reward model that thinks as well of an answer as the number that it says."""

    tokenizer, config, compute = TOKENIZER, SimpleNamespace(context=200), Compute(dtype="float32")

    def __init__(self):
        self.read = 0

    def score_ids(self, texts):
        self.read += len(texts)
        assert all(ids[-1] == TOKENIZER.im_end and len(ids) <= self.config.context for ids in texts)
        return [float(TOKENIZER.decode(ids).split("assistant\n")[-1].split("<|im_end|>")[0]) for ids in texts]


def turns(*said: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def preference(*answers: str, scores=None, prompt=("Pick a number.",)) -> dict:
    row = {"prompt": turns(*prompt), "responses": [{"role": "assistant", "content": text} for text in answers]}
    return row | ({"scores": scores} if scores else {})


def write(path, rows) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def measured(tmp_path, *paths, judge=None) -> dict:
    return {"model": "judge", "set": []} | measure(
        judge or Judge(), Settings(data=paths), ResultCache(tmp_path / "out", {})
    )


def test_accuracy_and_its_interval_are_those_worked_out_by_hand(tmp_path):
    """Three of four pairs are right. Wilson: (0.75 + 0.4802 ± 1.96 sqrt(0.1875 / 4 + 3.8416 / 64)) / 1.9604."""
    rows = [preference("2", "1"), preference("12", "11"), preference("5", "400"), preference("-1", "-2")]
    one = measured(tmp_path, write(tmp_path / "four.jsonl", rows))["sets"][0]
    assert (one["rows"], one["pairs"], one["accuracy"]) == (4, 4, 0.75)
    assert one["interval"] == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert one["gaps"] == []  # a ranking of two says nothing of how far they are apart
    longer = [len(TOKENIZER.encode_ordinary("5")), len(TOKENIZER.encode_ordinary("400"))]
    assert longer[0] < longer[1]
    assert one["longer"] == (0.5 + 0.5 + 0 + 0.5) / 4


def test_a_ranked_list_is_all_its_pairs_and_a_tie_is_half_right(tmp_path):
    """Of 3, 1, 1 the pairs are right, right, tied; of 2, 4, 3: wrong, wrong, right."""
    rows = [preference("3", "1", "01"), preference("2", "4", "3")]
    one = measured(tmp_path, write(tmp_path / "lists.jsonl", rows))["sets"][0]
    assert (one["rows"], one["pairs"]) == (2, 6)
    assert one["accuracy"] == pytest.approx(3.5 / 6)


def test_pairs_with_scores_are_told_by_how_far_they_are_apart(tmp_path):
    rows = [preference("2", "1", scores=[1, 0]), preference("1", "2", scores=[1, 0])]
    rows += [preference(f"{i + 2}", "1", scores=[3, 0]) for i in range(2)]
    result = measured(tmp_path, write(tmp_path / "scored.jsonl", rows))
    near, far = result["sets"][0]["gaps"]
    assert (near["title"], near["pairs"], near["accuracy"]) == ("gap 1 to 3", 2, 0.5)
    assert (far["title"], far["pairs"], far["accuracy"]) == ("gap 3 and more", 2, 1.0)
    assert "  gap 3 and more" in table(result)


def test_what_others_call_preferences_is_read_and_the_rest_is_counted(tmp_path):
    hh = [{"chosen": "\n\nHuman: A number?\n\nAssistant: 2", "rejected": "\n\nHuman: A number?\n\nAssistant: 1"}]
    pairs = [{"prompt": "A number?", "chosen": "2", "rejected": "1"}, {"prompt": "A number?", "chosen": "2"}]
    ranked = [{"instruction": "A number?", "output": ["3", "2", "1"]}]
    alpaca = [{"instruction": "A number?", "output": "3"}]
    paths = [
        write(tmp_path / f"{name}.jsonl", rows) for name, rows in (("hh", hh), ("pairs", pairs), ("ranked", ranked))
    ]
    sets = measured(tmp_path, *paths)["sets"]
    assert [(one["pairs"], one["accuracy"]) for one in sets] == [(1, 1), (1, 1), (3, 1)]
    assert [one["left_out"] for one in sets[::2]] == [[], []]
    assert sets[1]["left_out"][0].startswith("skipped 1 x fewer than two responses (first: pairs.jsonl:2")
    with pytest.raises(ValueError, match=r"no pair of responses in .*alpaca.*1 x fewer than two responses"):
        measured(tmp_path, write(tmp_path / "alpaca.jsonl", alpaca))


def test_old_turns_of_long_texts_go_and_what_is_still_too_long_is_left_out(tmp_path):
    long = "word " * 300
    rows = [
        preference("2", "1"),
        preference("2", "1", prompt=(long, "What?", "Pick a number.")),
        preference("2", "1", prompt=(long,)),
    ]
    path = write(tmp_path / "long.jsonl", rows)
    found = read_set(path, TOKENIZER, 200)
    assert len(found.prompts) == 2
    assert found.prompts[0].texts == found.prompts[1].texts  # without its first exchange the second row asks the same
    one = measured(tmp_path, path)["sets"][0]
    assert (one["pairs"], one["accuracy"]) == (2, 1)
    assert (
        "1 x preference longer than 200 tokens, even after dropping earlier turns (first: long.jsonl:3"
        in one["left_out"][0]
    )
    assert one["shortened"] == ["1 x oldest turns dropped to fit 200 tokens"]
    assert "shortened 1 x oldest turns" in table({"model": "judge", **measured(tmp_path, path)})


def test_rows_go_by_length_and_scores_find_back_to_them(tmp_path, monkeypatch):
    """Lists of two and three in chunks of two rows, of very different lengths."""
    monkeypatch.setattr(preferences, "CHUNK", 2)
    rows = [preference("2", "1", prompt=("word " * n,)) for n in (30, 3, 20)]
    rows += [preference("1", "2", prompt=("word " * n,)) for n in (10, 40)]
    rows += [preference("3", "2", "1", prompt=("word " * 25,))]
    judge, path = Judge(), write(tmp_path / "mixed.jsonl", rows)
    lengths = [max(map(len, row.texts)) for row in read_set(path, TOKENIZER, 200).prompts]
    assert lengths == sorted(lengths)
    first = measured(tmp_path, path, judge=judge)
    assert first["sets"][0]["accuracy"] == 6 / 8
    assert judge.read == 13
    assert measured(tmp_path, path, judge=judge) == first
    assert judge.read == 13  # the second time nothing is scored


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("helpful-base/test.jsonl", "Anthropic Helpful-base"),
        ("hh/helpful_online.jsonl", "Anthropic Helpful-online"),
        ("data/summarize-from-feedback.jsonl", "OpenAI Summ."),
        ("SHP/askscience.jsonl", "Stanford SHP"),
        ("PRM800K/phase2.jsonl", "OpenAI PRM800K"),
        ("hh/harmless-base.jsonl", None),
        ("data/ourship.jsonl", None),
    ],
)
def test_sets_of_the_report_have_their_row_beside_them(tmp_path, name, title):
    path = write(tmp_path / name, [preference("2", "1")])
    result = measured(tmp_path, path)
    assert result["sets"][0]["name"] == name
    assert result["sets"][0]["published"] == title
    shown = f"  published, {title}: PMP {TABLE_4[title][0]:.2f}" if title else "  published,"
    assert (shown in table(result)) == bool(title)


def test_gaps_cover_all_pairs_once():
    pairs = [accuracy.ScoredPair(gap, 1.0, 0) for gap in (0.5, 1, 1, 2, 5, 9)]
    parts = accuracy.by_gap(pairs)
    assert sorted(pair.gap for _, part in parts for pair in part) == [0.5, 1, 1, 2, 5, 9]
    assert accuracy.by_gap(pairs[1:3]) == []


# ---- the command ----


def main(*argv: str) -> int:
    return command_line.main_of("qwenjax.eval", command, list(argv))


def test_table_4_is_printed_and_kept(tmp_path, monkeypatch, capsys):
    from qwenjax.api import options

    monkeypatch.setattr(options, "load_reward", lambda path, dtype: Judge())
    paths = [write(tmp_path / f"{name}.jsonl", [preference("2", "1")]) for name in "ab"]
    out = tmp_path / "results"
    asked = f"--model={tmp_path}", "--table=4", "--data", *paths, f"--data={paths[0]}", f"--out={out}"
    assert main(*asked) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "table4.txt").read_text()
    assert "74.78" in printed
    assert "as published" in printed
    result = json.loads((out / "table4.json").read_text())
    assert [one["pairs"] for one in result["sets"]] == [1, 1]  # a file that is named twice is read once
    assert (out / "table4.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--table=4", "--tasks=passkey"], "run them apart"),
        (["--table=4", "--set", "ntk=true"], "a reward model is read as it was trained"),
    ],
)
def test_what_does_not_go_together_is_bad_usage(options, words, capsys):
    assert main("--model=nowhere", *options) == 2
    assert words in capsys.readouterr().err


def test_a_language_model_is_refused(tmp_path, capsys):
    folder = tiny_model.write(tmp_path / "tiny")
    path = write(tmp_path / "a.jsonl", [preference("2", "1")])
    assert main(f"--model={folder}", "--table=4", f"--data={path}", f"--out={tmp_path / 'out'}") == 1
    error = capsys.readouterr().err
    assert "is no reward model of ours; train one" in error
    assert len(error.splitlines()) == 1


def test_without_data_it_says_what_is_wanted(tmp_path):
    assert find_task("table4") is preferences
    with pytest.raises(ValueError, match="table 4 needs preferences: --data FILE"):
        measured(tmp_path)


def test_the_held_out_loss_is_that_of_training():
    """Of two pairs, one right by 2 and one wrong by 1: with labels of which a tenth is taken to be flipped."""
    some = [accuracy.ScoredPair(1.0, 2.0, 0), accuracy.ScoredPair(1.0, -1.0, 0)]
    right, wrong = np.log1p(np.exp([-2.0, 1.0])), np.log1p(np.exp([2.0, -1.0]))
    assert accuracy.loss_and_accuracy(some)["eval_loss"] == pytest.approx(right.mean())
    assert accuracy.loss_and_accuracy(some, smoothing=0.1)["eval_loss"] == pytest.approx(
        (0.9 * right + 0.1 * wrong).mean()
    )
    assert accuracy.loss_and_accuracy(some, margin=3.0)["eval_loss"] == pytest.approx(
        np.log1p(np.exp([1.0, 4.0])).mean()
    )
