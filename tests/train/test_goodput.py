"""Where the time went: hand-worked sums over two processes of one run."""

import pytest

from qwenjax.train.operations import goodput


def reading(began, wall, **seconds):
    return {"began": began, "wall": wall, **dict.fromkeys((*goodput.KINDS, "lost"), 0.0), **seconds}


def test_a_killed_process_counts_with_what_was_done_again():
    """The first was last read at 100 s and killed 5 steps of 2 s later; the second did them again, and 40 s in all."""
    metrics = [{"step": s, "tokens_per_second": 50.0} for s in (10, 12, 15)]
    lost = goodput.redone(metrics, 10, tokens_per_step=100)
    assert lost == {"redone_steps": 5, "redone_seconds": 10.0}
    events = [
        {"event": "started", "redone_seconds": 0.0},
        {"event": "time", "seconds": reading(1.0, 60, step=50)},
        {"event": "time", "seconds": reading(1.0, 100, step=80, data=5)},
        {"event": "started", **lost},
    ]
    total = goodput.total(events, reading(2.0, 40, step=30))
    assert (total["wall"], total["step"], total["lost"], total["processes"]) == (150, 120, 10, 2)
    shares = goodput.shares(total)
    assert shares["steps"] == pytest.approx(110 / 150)
    assert shares["lost"] == pytest.approx(10 / 150)
    assert sum(shares.values()) == pytest.approx(1)
    assert "in 2 starts" in goodput.line(total)
    assert goodput.redone(metrics, 15, 100)["redone_steps"] == 0


def test_steps_thrown_away_take_their_share_of_the_time():
    clock = goodput.Clock(0.0)
    clock.seconds["step"], clock.steps = 20.0, 10
    clock.undo(4)
    assert clock.seconds["lost"] == 8.0
