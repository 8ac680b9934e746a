"""`python -m experiments.studies.alignment`: its data, its floors, its arithmetic, and that nothing is done twice."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.alignment import __main__ as command
from experiments.studies.alignment import directed, harness, outcome, scoring, sentiment, stages
from experiments.studies.alignment.data import RatedPair
from experiments.studies.alignment.outcome import Wanted
from experiments.studies.alignment.stages import Stage, Stages
from qwenjax.common import command_line


def test_accuracy_by_gap(texts):
    one = texts[0]
    some = [RatedPair(one._replace(rating=r), one._replace(rating=0.0)) for r in (0.5, 0.9, 1.0, 3.0)]
    found = scoring.accuracy(np.array([1.0, -2.0, 0.0, 4.0]), some)
    assert found == {"0.5": 0.625, "1": 0.75, "2": 1.0}  # a tie is half right


def test_gains_are_in_deviations_of_before():
    def rows(gold, vader, texts):
        return [{"gold": g, "vader": v, "text": t, "ended": True, "tokens": 3} for g, v, t in zip(gold, vader, texts)]

    found = scoring.gains(rows([0, 2], [0.0, 0.2], "ab"), rows([3, 5], [0.5, 0.5], "aa"), ["gold"])
    assert found["gold_z"] == pytest.approx(3 / np.sqrt(2))
    assert found["vader_rise"] == pytest.approx(0.4)
    assert found["vader_error"] == pytest.approx(0.1)
    assert (found["unique_before"], found["unique"]) == (1.0, 0.5)


def test_what_was_run_again_is_scored_again(tmp_path):
    file, run = tmp_path / "answers.jsonl", tmp_path / "run"
    run.mkdir()
    (run / "report.md").write_text("old")
    assert not scoring.fresh(file, [run])
    file.write_text("")
    os.utime(run / "report.md", ns=(0, 0))
    assert scoring.fresh(file, [run])
    os.utime(run / "report.md")
    os.utime(file, ns=(1, 1))
    assert not scoring.fresh(file, [run])


def test_the_lexicon_knows_good_from_bad():
    good, bad = scoring.lexicon(["A wonderful, lovely film.", "A horrible, ugly film."])
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
            "import json, sys; from pathlib import Path; from qwenjax import config\n"
            "from qwenjax.config import lookup\n"
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
        assert {run.init_from, run.rl.reward, run.rl.gold_reward} <= {*begun, ""}
        if run.task == "ppo":
            assert run.model == found["sft"].experiment.model == found["lm"].experiment.model
            assert (
                run.rl.value_warmup_steps % run.eval_every == 0
            )  # an evaluation shows the policy before its first update


def test_the_arms_differ_in_what_they_are_about(texts, tmp_path):
    found = sentiment.stages(0, list(sentiment.ARMS), tmp_path, tmp_path)
    plain, bare, control = (found[f"ppo-{arm}"].experiment.rl for arm in sentiment.ARMS)
    assert (plain.ptx_coef > 0, bare.ptx_coef, control.ptx_coef > 0) == (True, 0, True)
    assert (plain.shuffle, bare.shuffle, control.shuffle) == (False, False, True)


# ---- the command ----


def main(argv):
    return command_line.main_of("experiments.studies.alignment", command, argv)


@pytest.fixture
def outcomes(monkeypatch):
    """In the place of a seed's training: an outcome by seed."""
    by_seed = {}
    monkeypatch.setattr(sentiment, "run", lambda seed, *_: by_seed[seed] | {"seed": seed})
    return by_seed


def test_the_command_prints_claims_and_fails_with_one_of_them(ratings, tmp_path, outcomes, capsys):
    outcomes.update({0: seed_of_a(), 1: seed_of_a(), 2: seed_of_a(gold_z=-0.1)})
    arguments = [f"--data={ratings}", f"--workdir={tmp_path / 'runs'}"]
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


def test_curves_of_seeds_meet_at_the_same_iteration(monkeypatch, tmp_path):
    """One of them was scored before the first iteration, too."""
    early = {"step": [0, 5, 10], **{name: [9.0, 0.0, 1.0] for name in outcome.PANELS}}
    late = {"step": [5, 10], **{name: [0.0, 3.0] for name in outcome.PANELS}}
    drawn = []
    monkeypatch.setattr(outcome.figures, "save", lambda figure, path: drawn.append(figure))
    outcome.draw([{"arms": {"ptx": {"curves": one}}} for one in (early, late)], tmp_path / "png")
    line = drawn[0].axes[0].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([5, 10], [0.0, 2.0])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--arms=pxt"], 1, "experiment A has ptx, no_ptx, shuffled"),
        (["--seeds=1,1"], 2, "different whole numbers"),
        (["--data=absent.jsonl"], 1, "no file absent.jsonl"),
    ],
)
def test_bad_usage(ratings, tmp_path, arguments, code, message, capsys):
    given = [f"--data={ratings}", f"--workdir={tmp_path}", *arguments]
    try:
        assert main(given) == code
    except SystemExit as stop:
        assert stop.code == code  # noqa: PT017
    assert message in capsys.readouterr().err
