"""Goodput: what the hours of a run went into, over all processes that it took, and how many of them were progress."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from qwenjax.telemetry import clock

KINDS = ("step", "data", "eval", "checkpoint", "compile", "start-up")  # the rest is `other`: logging, agreement


class Clock:
    """Seconds of this process by what they were spent on; `lost` is the part of the steps' that came to nothing."""

    def __init__(self, began: float):
        self.began = began  # seconds since 1970
        self.seconds = Counter(dict.fromkeys((*KINDS, "lost"), 0.0))
        self.steps = 0

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def ready(self) -> None:
        """The first step follows: all time so far but for compiling was start-up."""
        self.seconds["start-up"] = time.time() - self.began - self.seconds["compile"]

    def undo(self, steps: int) -> None:
        """So many steps of this process were thrown away."""
        spent = self.seconds["step"] + self.seconds["data"] - self.seconds["lost"]
        self.seconds["lost"] += spent * min(1.0, steps / max(self.steps, 1))

    def reading(self) -> dict[str, float]:
        """For a line of events.jsonl: the totals of this process up to now."""
        return {"began": self.began, "wall": time.time() - self.began, **self.seconds}


def redone(metrics: list[dict], step: int, tokens_per_step: int) -> dict[str, float]:
    """What the process before this one loses by going on from `step`, from its metrics.jsonl (before that is cut
    back): steps to be done again and their seconds; exact to `log_every` steps."""
    rows = [row for row in metrics if "tokens_per_second" in row]
    again = max([row["step"] for row in rows if row["step"] > step], default=step) - step
    if not again:
        return {"redone_steps": 0, "redone_seconds": 0.0}
    rates = [row["tokens_per_second"] for row in rows if row["step"] > step]
    return {"redone_steps": again, "redone_seconds": again * tokens_per_step / (sum(rates) / len(rates))}


def total(events: list[dict], now: dict[str, float]) -> dict[str, float]:
    """Seconds by kind over the whole run: the last reading of every process in `events`, and `now` of this one.

    What a killed process did after its last reading is known only as the steps that were done again: they are added to
    the wall, and to what was lost.
    """
    readings = [row["seconds"] for row in events if row["event"] == "time"]
    last = {reading["began"]: reading for reading in (*readings, now)}
    result = Counter({kind: sum(row[kind] for row in last.values()) for kind in ("wall", *KINDS, "lost")})
    again = sum(row["redone_seconds"] for row in events if row["event"] == "started")
    for kind in ("wall", "step", "lost"):
        result[kind] += again
    result["processes"] = len([row for row in events if row["event"] == "started"])
    return dict(result)


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Fractions of the wall: progress (steps that counted), what they waited for, and everything else."""
    wall = max(seconds["wall"], 1e-9)
    named = {"steps": max(0.0, seconds["step"] - seconds["lost"]), "waiting for data": seconds["data"]}
    named |= {"lost": seconds["lost"], "evaluation": seconds["eval"], "saving": seconds["checkpoint"]}
    named |= {"compiling": seconds["compile"], "start-up": seconds["start-up"]}
    named["other"] = max(0.0, wall - sum(named.values()))
    return {name: value / wall for name, value in named.items()}


def line(seconds: dict[str, float]) -> str:
    """The closing words on time."""
    parts = ", ".join(f"{name} {100 * part:.1f} %" for name, part in shares(seconds).items() if part >= 0.0005)
    times = f" in {seconds['processes']} starts" if seconds["processes"] > 1 else ""
    return f"time        {clock(seconds['wall'])}{times}: {parts}"
