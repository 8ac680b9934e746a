"""`python -m qwenjax.bench align`: its data, its floors, its arithmetic, and that nothing is done twice."""

import gzip
import json
import os
import random
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from qwenjax.bench.__main__ import main
from qwenjax.bench.align import data, directed, floor, harness, judge, outcome, sentiment, stages
from qwenjax.bench.align.data import KINDS, Pair
from qwenjax.bench.align.outcome import Wanted
from qwenjax.bench.align.stages import Stage, Stages
from qwenjax.data.chat.schema import validate

GOOD, BAD, NOUNS = ("lovely", "great", "fine"), ("awful", "dull", "bad"), ("film", "phone", "day", "law", "plot")


@pytest.fixture(scope="module")
def ratings(tmp_path_factory) -> Path:
    """720 texts whose rating is that of their adjective."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("ratings") / "ratings.jsonl.gz"
    rows = []
    for source, word, noun, number in product(KINDS, ("The", "A"), NOUNS, range(18)):
        adjective = draw.choice(GOOD + BAD)
        rating = (1 if adjective in GOOD else -1) * draw.uniform(1.8, 2.2)
        text = f"{word} {adjective} {noun}, of {number} {draw.choice(NOUNS)}s."
        rows.append({"source": source, "id": str(len(rows)), "rating": rating, "text": text})
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture(scope="module")
def texts(ratings):
    return data.read(ratings)


def ends(some: list[Pair]) -> set[str]:
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
    found = judge.accuracy(floor.linear_margins(parts["proxy"], parts["test"]), parts["test"])
    assert found["0.5"] > 0.97
    shuffled = data.pairs(data.relabelled([t for t in texts if t.part == "proxy"]))
    assert judge.accuracy(floor.linear_margins(shuffled, parts["test"]), parts["test"])["0.5"] < 0.8


def test_the_linear_floor_knows_what_was_asked_for(texts):
    found = {part: data.both_directions(data.pairs([t for t in texts if t.part == part])) for part in data.PARTS}
    assert judge.accuracy(floor.linear_margins(found["proxy"], found["test"]), found["test"])["0.5"] > 0.97
    assert judge.accuracy(floor.length_margins(found["test"]), found["test"])["0.5"] == 0.5  # one direction wins


def test_accuracy_by_gap(texts):
    one = texts[0]
    some = [Pair(one._replace(rating=r), one._replace(rating=0.0)) for r in (0.5, 0.9, 1.0, 3.0)]
    found = judge.accuracy(np.array([1.0, -2.0, 0.0, 4.0]), some)
    assert found == {"0.5": 0.625, "1": 0.75, "2": 1.0}  # a tie is half right


def test_gains_are_in_deviations_of_before():
    def rows(gold, vader, texts):
        return [{"gold": g, "vader": v, "text": t, "ended": True, "tokens": 3} for g, v, t in zip(gold, vader, texts)]

    found = judge.gains(rows([0, 2], [0.0, 0.2], "ab"), rows([3, 5], [0.5, 0.5], "aa"), ["gold"])
    assert found["gold_z"] == pytest.approx(3 / np.sqrt(2))
    assert found["vader_rise"] == pytest.approx(0.4)
    assert found["vader_error"] == pytest.approx(0.1)
    assert (found["unique_before"], found["unique"]) == (1.0, 0.5)


def test_what_was_run_again_is_judged_again(tmp_path):
    file, run = tmp_path / "answers.jsonl", tmp_path / "run"
    run.mkdir()
    (run / "report.md").write_text("old")
    assert not judge.fresh(file, [run])
    file.write_text("")
    os.utime(run / "report.md", ns=(0, 0))
    assert judge.fresh(file, [run])
    os.utime(run / "report.md")
    os.utime(file, ns=(1, 1))
    assert not judge.fresh(file, [run])


def test_the_lexicon_knows_good_from_bad():
    good, bad = judge.lexicon(["A wonderful, lovely film.", "A horrible, ugly film."])
    assert good > 0.5 > -0.5 > bad


# ---- claims ----


def test_claims_are_about_medians_and_what_was_run():
    results = [{"a": 1.0}, {"a": 5.0}, {"a": 2.0, "b": 7.0}]
    wanted = [
        Wanted("median", lambda r: r["a"], ">=", 2.0),
        Wanted("every", lambda r: r["a"], ">=", 2.0, min),
        Wanted("below", lambda r: r["b"], "<=", 6.9),
        Wanted("not run", lambda r: r["c"], ">=", 0.0),
    ]
    found = outcome.check(wanted, results)
    assert [(c.what, c.value, c.holds) for c in found] == [
        ("median", 2, True),
        ("every", 1, False),
        ("below", 7, False),
    ]
    assert [line.split(" | ")[0] for line in outcome.claims_table(found).splitlines()[2:]] == [
        "| PASS",
        "| FAIL",
        "| FAIL",
    ]


def test_a_number_that_is_none_holds_no_claim():
    found = outcome.check([Wanted("x", lambda r: r["x"], s, 0.0) for s in (">=", "<=")], [{"x": 1.0}, {"x": np.nan}])
    assert [c.holds for c in found] == [False, False]


def arm(**change) -> dict:
    good = {
        "kl_first": 0.0,
        "ratio_error": 1e-5,
        "kl": 5.4,
        "gold_z": 1.2,
        "proxy_z": 1.5,
        "vader_rise": 0.4,
        "vader_error": 0.02,
    }
    good |= {"unique": 0.95, "lm_loss_pretrained": 4.6, "lm_loss": 4.8}
    good["curves"] = {"step": [5, 10], **{name: [0.0, 1.0] for name in outcome.PANELS}}
    return good | change


def seed_of_a(**change) -> dict:
    accuracy = {"proxy": {"1": 0.73}, "gold": {"1": 0.71}, "random": {"1": 0.52}}
    arms = {"ptx": arm(**change), "no_ptx": arm(lm_loss=5.6), "shuffled": arm(vader_rise=0.0)}
    return {"seed": 0, "accuracy": accuracy, "arms": arms}


def test_all_claims_hold_of_what_was_found_before():
    found = outcome.check(sentiment.CLAIMS, [seed_of_a()] * 3)
    assert len(found) == len(sentiment.CLAIMS)
    assert all(claim.holds for claim in found)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"gold_z": 0.5, "proxy_z": 0.6}, ["gain by the gold RM, z"]),
        ({"proxy_z": 3.0}, ["gain by gold over gain by proxy"]),
        ({"lm_loss": 5.0}, ["LM loss above the pretrained model's, with ptx"]),
        ({"lm_loss": 5.4}, ["LM loss above the pretrained model's, with ptx", "how much higher it is without"]),
        ({"vader_error": 0.05}, ["that gain in standard errors"]),
        ({"kl": 9.0}, ["KL, nats per response"]),
        ({"ratio_error": 0.1}, ["sampler against trainer, ratio - 1"]),
    ],
)
def test_each_trouble_breaks_its_claim(change, broken):
    found = outcome.check(sentiment.CLAIMS, [seed_of_a(**change)])
    assert [claim.what for claim in found if not claim.holds] == broken


def test_one_bad_seed_of_three_breaks_what_every_seed_must_show():
    found = outcome.check(sentiment.CLAIMS, [seed_of_a(), seed_of_a(), seed_of_a(gold_z=0.1, kl=40.0)])
    assert [c.what for c in found if not c.holds] == ["every seed gains by gold, z", "no seed explodes, KL"]


# ---- stages ----


@pytest.fixture
def train(monkeypatch):
    """In the place of training: a child that leaves the files of a finished run, or fails; and what was asked."""
    asked = []

    def command(self, stage):
        asked.append(stage.name)
        if stage.settings.get("seed") == 333:
            return [sys.executable, "-c", "import sys; sys.exit(3)"]
        if stage.settings.get("seed") == 666:
            return [sys.executable, "-c", "import sys; print('first'); sys.exit('the loss is not finite')"]
        code = (
            "import json, sys; from pathlib import Path; from qwenjax import config, lookup\n"
            "work = Path(sys.argv[1]); work.mkdir(parents=True)\n"
            "made = lookup.experiment(sys.argv[2], json.loads(sys.argv[3]))\n"
            "(work / 'config.json').write_text(json.dumps(config.to_dict(made)))\n"
            "(work / 'report.md').write_text('done')\n"
        )
        settings = json.dumps({name: str(value) for name, value in stage.settings.items()})
        return [sys.executable, "-c", code, str(self.folder / stage.name), stage.exp, settings]

    monkeypatch.setattr(Stages, "command", command)
    return asked


def test_a_finished_stage_is_not_run_again(train, tmp_path):
    told = []
    runner, stage = Stages(tmp_path, tmp_path / "data", told.append), Stage("lm", "sentiment_lm", {"seed": 3})
    assert runner.run(stage) == runner.run(stage) == tmp_path / "lm"
    assert train == ["lm"]
    assert sum(told) == pytest.approx(stage.work)  # a meter is about what is left to do
    runner.run(Stage("lm", "sentiment_lm", {"seed": 3}))
    assert train == ["lm"]
    (tmp_path / "lm" / "report.md").unlink()  # it was killed before its end
    assert not stages.finished(tmp_path / "lm", stage.experiment)


def test_a_stage_of_other_settings_is_not_taken_for_finished(train, tmp_path):
    runner = Stages(tmp_path, tmp_path / "data", lambda work: None)
    runner.run(Stage("lm", "sentiment_lm", {"seed": 3}))
    assert not stages.finished(tmp_path / "lm", Stage("lm", "sentiment_lm", {"seed": 4}).experiment)


def test_a_failed_stage_says_why(train, tmp_path):
    runner = Stages(tmp_path, tmp_path / "data", lambda work: None)
    with pytest.raises(ValueError, match=r"stage lm ended with code 1.*lm.log.*\n.*\n?.*the loss is not finite"):
        runner.run(Stage("lm", "sentiment_lm", {"seed": 666}))


def test_an_interrupted_stage_interrupts(train, tmp_path):
    runner = Stages(tmp_path, tmp_path / "data", lambda work: None)
    with pytest.raises(KeyboardInterrupt):
        runner.run(Stage("lm", "sentiment_lm", {"seed": 333}))


def checkpoint(folder: Path, step: int, hashes: dict[str, str]) -> None:
    (folder / "checkpoints" / str(step) / "meta").mkdir(parents=True)
    (folder / "checkpoints" / str(step) / "meta" / "metadata").write_text(json.dumps({"hashes": hashes}))


@pytest.mark.parametrize(("policy", "kept"), [("11", 1.0), ("12", 0.0)])
def test_the_warm_up_is_read_from_checkpoints_and_log(tmp_path, policy, kept):
    checkpoint(tmp_path / "sft", 9, {"['params']['embed']": "00"})
    checkpoint(tmp_path / "sft", 10, {"['params']['embed']": "11", "['rest']['count']": "22"})  # the newer one counts
    checkpoint(tmp_path / "ppo", 50, {"['params']['embed']": policy, "['rest']['count']": "33"})
    rows = [{"step": n, "value_loss": 4.0 if n <= 5 else 1.0 if n <= 50 else 9.0} for n in range(1, 60)]
    (tmp_path / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = directed.warm_up(tmp_path / "sft", tmp_path / "ppo", Stage("ppo", "directed_ppo"))
    assert found == {"kept": kept, "value_fall": 0.75}


@pytest.mark.parametrize("name", harness.MODULES)
def test_stages_are_experiments_and_read_what_is_made(name, texts, tmp_path):
    made, folder = harness.MODULES[name], tmp_path / "seed"
    made.make(texts, tmp_path)
    found = made.stages(7, list(made.ARMS), tmp_path, folder)
    begun = {str(folder / stage) for stage in found}
    for stage in found.values():
        run = stage.experiment
        assert run.seed == 7
        for path in (*(f.path for f in run.chat.files), *(s.text for s in run.data.sources)):
            assert Path(path).is_file(), path
        assert {run.init_from, run.rl.reward, run.rl.gold} <= {*begun, ""}
        if run.task == "ppo":
            assert run.model == found["sft"].experiment.model == found["lm"].experiment.model
            assert run.rl.value_steps % run.eval_every == 0  # an evaluation shows the policy before its first update


def test_the_arms_differ_in_what_they_are_about(texts, tmp_path):
    found = sentiment.stages(0, list(sentiment.ARMS), tmp_path, tmp_path)
    plain, bare, control = (found[f"ppo-{arm}"].experiment.rl for arm in sentiment.ARMS)
    assert (plain.ptx > 0, bare.ptx, control.ptx > 0) == (True, 0, True)
    assert (plain.shuffle, bare.shuffle, control.shuffle) == (False, False, True)


# ---- the command ----


@pytest.fixture
def outcomes(monkeypatch):
    """In the place of a seed's training: an outcome by seed."""
    by_seed = {}
    monkeypatch.setattr(sentiment, "run", lambda seed, *_: by_seed[seed] | {"seed": seed})
    return by_seed


def test_the_command_prints_claims_and_fails_with_one_of_them(ratings, tmp_path, outcomes, capsys):
    outcomes.update({0: seed_of_a(), 1: seed_of_a(), 2: seed_of_a(gold_z=-0.1)})
    arguments = ["align", f"--data={ratings}", f"--workdir={tmp_path / 'runs'}"]
    png = tmp_path / "curves.png"
    assert main([*arguments, "--seeds=0,1", f"--png={png}"]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert "FAIL" not in out
    assert "| length |" in out
    assert "seed 1: accuracy at a gap of 1: proxy 73.0%" in err
    assert main([*arguments, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert [c["what"] for c in result["claims"] if not c["holds"]] == ["every seed gains by gold, z"]
    assert [seed["seed"] for seed in result["seeds"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--arms=pxt"], 1, "experiment A has ptx, no_ptx, shuffled"),
        (["--seeds=1,1"], 2, "different whole numbers"),
        (["--data=absent.jsonl"], 1, "no file absent.jsonl"),
    ],
)
def test_bad_usage(ratings, tmp_path, arguments, code, message, capsys):
    given = ["align", f"--data={ratings}", f"--workdir={tmp_path}", *arguments]
    try:
        assert main(given) == code
    except SystemExit as stop:
        assert stop.code == code  # noqa: PT017
    assert message in capsys.readouterr().err


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
    assert 0.45 < judge.accuracy(floor.length_margins(test), test)["1"] < 0.6
