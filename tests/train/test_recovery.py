"""Leaps of loss: what is judged usual, where a run goes back to, and that whole runs recover and can be replayed."""

import contextlib
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from runs import experiment, numbers, run, state

from qwenjax.common.jsonl import read_rows
from qwenjax.config import Recovery
from qwenjax.train.loop import fit
from qwenjax.train.operations.spikes import Diverged, Guard, target
from qwenjax.train.stages.pretrain import Pretrain

RECOVERY = Recovery(deviations=8, window=4, spikes=2, among=3, rewinds=2)


def test_without_recovery_nothing_is_beyond_the_limits():
    assert guard([4, 3, 2, 1], deviations=0).limits().tolist() == [math.inf, math.inf]


def guard(losses, **change) -> Guard:
    watched = Guard(replace(RECOVERY, **change))
    for step, loss in enumerate(losses, 1):
        watched.usual(step, {"loss": loss, "grad_norm": 1.0})
    return watched


def test_limits_are_the_median_and_so_many_robust_deviations():
    assert guard([5, 4, 3]).limits().tolist() == [math.inf, math.inf]  # fewer than the window
    # last four: 4 3 2 1; median 2.5, deviations 1.5 .5 .5 1.5, their median 1
    np.testing.assert_allclose(guard([100, 4, 3, 2, 1]).limits()[0], 2.5 + 8 * 1.4826, rtol=1e-6)
    # a norm that never moves: 1 % of it counts as its deviation
    np.testing.assert_allclose(guard([4, 3, 2, 1]).limits()[1], 1 + 8 * 0.01, rtol=1e-6)


def test_leaps_add_up_only_within_so_many_batches_and_are_forgotten():
    watched = guard([])
    assert watched.leapt(10) is None
    for step in (11, 12, 13):
        watched.usual(step, {"loss": 1.0, "grad_norm": 1.0})
    assert watched.leapt(13) is None  # the first is four batches ago
    assert watched.leapt(13) == 13


def test_a_guard_goes_on_from_its_saved_state():
    watched = guard([4, 3, 2, 1])
    watched.leapt(4)
    again = Guard(RECOVERY, json.loads(json.dumps(watched.state)))
    assert again.limits().tolist() == watched.limits().tolist()
    assert again.leapt(4) == watched.leapt(4) == 4


def test_rewinds_are_counted_in_one_place_and_end_the_run():
    watched = guard([])
    for count in (1, 2):
        watched.leapt(8)
        assert watched.leapt(8) == 8
        watched = watched.rewound(None, 8)
        assert watched.state["rewinds"] == count
    elsewhere = Guard(RECOVERY, json.loads(json.dumps(watched.state)))
    watched.leapt(8)
    with pytest.raises(Diverged, match=r"2 of the last 3 batches leapt at step 8, after 2 rewinds"):
        watched.leapt(8)
    elsewhere.usual(13, {"loss": 1.0, "grad_norm": 1.0})  # a window past the trouble
    assert elsewhere.state["rewinds"] == 0


def test_target_is_the_newest_scheduled_checkpoint_before_and_one_older_each_time():
    steps = [4, 8, 10, 12, 16]  # 10: an interruption
    assert [target(steps, 14, rewinds, 4) for rewinds in (0, 1, 2, 3)] == [12, 8, 4, 4]
    assert target(steps, 11, 0, 4) == 8
    assert target(steps, 3, 0, 4) == 0
    assert target([], 9, 0, 4) == 0


# ---- whole runs on rows of which some are poison ----


class Poisoned(Pretrain):
    """Batches that begin in `bad` have weights of NaN, or targets that are noise."""

    bad: tuple[int, ...] = ()
    ends: int | None = None  # a row whose reading kills the run

    def batches(self, next_row):
        for after, batch in super().batches(next_row):
            row = after - self.experiment.data.batch_size
            if row == self.ends:
                raise KeyboardInterrupt
            if row in self.bad:
                batch["weights"] = batch["weights"] * np.nan
            yield after, batch


@pytest.fixture
def poison(monkeypatch):
    def set(*bad, ends=None):
        monkeypatch.setattr(Poisoned, "bad", bad)
        monkeypatch.setattr(Poisoned, "ends", ends)
        monkeypatch.setitem(fit.__globals__["TASKS"], "pretrain", Poisoned)

    return set


def small(corpus, **change):
    return experiment(corpus, recovery=RECOVERY, eval_every=0, save_every=3, steps=11, prompts=(), **change)


def events(workdir):
    return [
        {k: v for k, v in row.items() if k != "time"}
        for row in read_rows(workdir / "events.jsonl")
        if row["event"] in ("left out", "rewind")
    ]


def test_a_run_leaves_out_a_leap_goes_back_from_two_and_replays_alike_when_killed(corpus, poison, tmp_path):
    """Rows 32: one leap at step 4. Rows 72 and 80: two at step 8, so back to step 6, and on behind row 88."""
    bad = (32, 72, 80)
    poison(*bad)
    whole = tmp_path / "whole"
    assert run(small(corpus), corpus, whole).finished
    assert [(e["event"], e["step"], e["row"]) for e in events(whole)] == [
        ("left out", 4, 32),
        ("left out", 8, 72),
        ("left out", 8, 80),
        ("rewind", 8, 80),
    ]
    assert (events(whole)[-1]["to"], events(whole)[-1]["next_row"]) == (6, 88)
    assert events(whole)[-1]["skipped"] == 88 - 7 * 8  # read since step 6, which had read 7 batches
    rows = [r for r in numbers(whole) if "loss" in r]
    assert [r["step"] for r in rows] == list(range(1, 12))
    assert [r["next_row"] for r in rows] == [8, 16, 24, 32, 48, 56, 96, 104, 112, 120, 128]
    assert state(whole, 11)["next_row"] == 128
    for kill in (72, 88, 104, 120):  # before the second trouble, right after the rewind, and once and twice saved since
        cut = tmp_path / f"cut-{kill}"
        poison(*bad, ends=kill)
        with pytest.raises(KeyboardInterrupt):
            run(small(corpus), corpus, cut)
        poison(*bad)
        same_after_all(corpus, cut, whole)
        shutil.rmtree(cut)


def same_after_all(corpus, cut, whole):
    """A run that was cut off ends, started again, as the one that was not."""
    assert run(small(corpus), corpus, cut).finished
    assert state(cut, 11) == state(whole, 11)
    assert numbers(cut) == numbers(whole)
    assert events(cut) == events(whole)


def test_a_run_goes_further_back_each_time_and_replays_alike_when_killed(corpus, poison, tmp_path):
    """Trouble at step 8 (rows 64, 72), again at step 7 (88, 96): back to step 6, then to 3; then all is well."""
    bad = (64, 72, 88, 96)
    poison(*bad)
    whole = tmp_path / "whole"
    assert run(small(corpus), corpus, whole).finished
    rewinds = [event for event in events(whole) if event["event"] == "rewind"]
    assert [(e["step"], e["to"], e["next_row"]) for e in rewinds] == [(8, 6, 80), (7, 3, 104)]
    assert [r["next_row"] for r in numbers(whole) if "loss" in r] == [8, 16, 24, *range(112, 176, 8)]
    cut = tmp_path / "cut"
    poison(*bad, ends=104)  # right after going back the second time: both troubles are met again
    with pytest.raises(KeyboardInterrupt):
        run(small(corpus), corpus, cut)
    poison(*bad)
    same_after_all(corpus, cut, whole)


def test_a_run_that_only_leaps_gives_up_and_says_so(corpus, poison, tmp_path):
    poison(*range(40, 4000, 8))
    with pytest.raises(Diverged, match=r"after 2 rewinds in this place(.|\n)*optim\.peak"):
        run(small(corpus), corpus, tmp_path)
    assert [e["to"] for e in events(tmp_path) if e["event"] == "rewind"] == [3, 3]


def test_a_finite_leap_is_left_out_and_ordinary_steps_are_as_without_the_guard(corpus, tmp_path):
    """Limits that nothing reaches change no bit; limits a hair above the median leave something out."""
    plain, guarded = tmp_path / "plain", tmp_path / "guarded"
    run(replace(small(corpus), recovery=Recovery(), steps=4), corpus, plain)
    run(replace(small(corpus), recovery=Recovery(deviations=1e6, window=2), steps=4), corpus, guarded)
    assert state(plain, 4) == state(guarded, 4)
    wary = Recovery(deviations=1e-6, window=2, spikes=9, among=9)
    with contextlib.suppress(Diverged):  # most batches leap then, and it may give up
        run(replace(small(corpus), recovery=wary, steps=8), corpus, tmp_path / "wild")
    leaps = [event for event in events(tmp_path / "wild") if event["event"] == "left out"]
    assert leaps
    assert all(math.isfinite(leap["loss"]) for leap in leaps)
