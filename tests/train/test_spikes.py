"""Loss spikes: the limits, where a run rewinds to, and that whole runs recover and can be replayed."""

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
from qwenjax.train.operations.spikes import Diverged, SpikeDetector, rewind_target
from qwenjax.train.stages.pretrain import Pretrain

RECOVERY = Recovery(deviations=8, window=4, spikes=2, among=3, rewinds=2)


def test_without_recovery_nothing_is_beyond_the_limits():
    assert after_losses([4, 3, 2, 1], deviations=0).limits().tolist() == [math.inf, math.inf]


def after_losses(losses, **change) -> SpikeDetector:
    detector = SpikeDetector(replace(RECOVERY, **change))
    for step, loss in enumerate(losses, 1):
        detector.add_step(step, {"loss": loss, "grad_norm": 1.0})
    return detector


def test_limits_are_the_median_and_so_many_robust_deviations():
    assert after_losses([5, 4, 3]).limits().tolist() == [math.inf, math.inf]  # fewer than the window
    # last four: 4 3 2 1; median 2.5, deviations 1.5 .5 .5 1.5, their median 1
    np.testing.assert_allclose(after_losses([100, 4, 3, 2, 1]).limits()[0], 2.5 + 8 * 1.4826, rtol=1e-6)
    # a norm that never moves: 1 % of it counts as its deviation
    np.testing.assert_allclose(after_losses([4, 3, 2, 1]).limits()[1], 1 + 8 * 0.01, rtol=1e-6)


def test_spikes_add_up_only_within_so_many_batches_and_are_forgotten():
    detector = after_losses([])
    assert detector.add_spike(10) is None
    for step in (11, 12, 13):
        detector.add_step(step, {"loss": 1.0, "grad_norm": 1.0})
    assert detector.add_spike(13) is None  # the first is four batches ago
    assert detector.add_spike(13) == 13


def test_a_detector_goes_on_from_its_saved_state():
    detector = after_losses([4, 3, 2, 1])
    detector.add_spike(4)
    again = SpikeDetector(RECOVERY, json.loads(json.dumps(detector.state)))
    assert again.limits().tolist() == detector.limits().tolist()
    assert again.add_spike(4) == detector.add_spike(4) == 4


def test_rewinds_are_counted_in_one_place_and_end_the_run():
    detector = after_losses([])
    for count in (1, 2):
        detector.add_spike(8)
        assert detector.add_spike(8) == 8
        detector = detector.rewound(None, 8)
        assert detector.state["rewinds"] == count
    elsewhere = SpikeDetector(RECOVERY, json.loads(json.dumps(detector.state)))
    detector.add_spike(8)
    with pytest.raises(Diverged, match=r"2 of the last 3 batches were spikes at step 8, after 2 rewinds"):
        detector.add_spike(8)
    elsewhere.add_step(13, {"loss": 1.0, "grad_norm": 1.0})  # a window past the spikes
    assert elsewhere.state["rewinds"] == 0


def test_target_is_the_newest_scheduled_checkpoint_before_and_one_older_each_time():
    steps = [4, 8, 10, 12, 16]  # 10: an interruption
    assert [rewind_target(steps, 14, rewinds, 4) for rewinds in (0, 1, 2, 3)] == [12, 8, 4, 4]
    assert rewind_target(steps, 11, 0, 4) == 8
    assert rewind_target(steps, 3, 0, 4) == 0
    assert rewind_target([], 9, 0, 4) == 0


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
        if row["event"] in ("skipped", "rewind")
    ]


def test_a_run_skips_a_spike_rewinds_from_two_and_replays_alike_when_killed(corpus, poison, tmp_path):
    """Rows 32: one spike at step 4. Rows 72 and 80: two at step 8, so back to step 6, and on after row 88."""
    bad = (32, 72, 80)
    poison(*bad)
    whole = tmp_path / "whole"
    assert run(small(corpus), corpus, whole).finished
    assert [(e["event"], e["step"], e["row"]) for e in events(whole)] == [
        ("skipped", 4, 32),
        ("skipped", 8, 72),
        ("skipped", 8, 80),
        ("rewind", 8, 80),
    ]
    assert (events(whole)[-1]["to"], events(whole)[-1]["next_row"]) == (6, 88)
    assert events(whole)[-1]["skipped"] == 88 - 7 * 8  # read since step 6, which had read 7 batches
    rows = [r for r in numbers(whole) if "loss" in r]
    assert [r["step"] for r in rows] == list(range(1, 12))
    assert [r["next_row"] for r in rows] == [8, 16, 24, 32, 48, 56, 96, 104, 112, 120, 128]
    assert state(whole, 11)["next_row"] == 128
    for kill in (72, 88, 104, 120):  # before the second spikes, right after the rewind, and once and twice saved since
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


def test_a_run_of_only_spikes_gives_up_and_says_so(corpus, poison, tmp_path):
    poison(*range(40, 4000, 8))
    with pytest.raises(Diverged, match=r"after 2 rewinds near this step(.|\n)*optim\.peak_lr"):
        run(small(corpus), corpus, tmp_path)
    assert [e["to"] for e in events(tmp_path) if e["event"] == "rewind"] == [3, 3]


def test_a_finite_spike_is_skipped_and_ordinary_steps_are_as_without_recovery(corpus, tmp_path):
    """Limits that nothing reaches change no bit; limits a hair above the median skip something."""
    plain, guarded = tmp_path / "plain", tmp_path / "guarded"
    run(replace(small(corpus), recovery=Recovery(), steps=4), corpus, plain)
    run(replace(small(corpus), recovery=Recovery(deviations=1e6, window=2), steps=4), corpus, guarded)
    assert state(plain, 4) == state(guarded, 4)
    wary = Recovery(deviations=1e-6, window=2, spikes=9, among=9)
    with contextlib.suppress(Diverged):  # most batches are spikes then, and it may give up
        run(replace(small(corpus), recovery=wary, steps=8), corpus, tmp_path / "wild")
    spikes = [event for event in events(tmp_path / "wild") if event["event"] == "skipped"]
    assert spikes
    assert all(math.isfinite(spike["loss"]) for spike in spikes)
