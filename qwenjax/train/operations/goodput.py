"""Goodput: where the time of a run went, over all its processes, and how much of it was progress."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from qwenjax.telemetry import clock

KINDS = ("step", "data", "eval", "checkpoint", "compile", "start-up")  # the rest, such as logging, is `other`


class Clock:
    """Seconds of this process by kind. "lost" is the part of "step" and "data" whose steps were thrown away."""

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
        """Marks the start of the first step: all time before it, without compiling, was start-up."""
        self.seconds["start-up"] = time.time() - self.began - self.seconds["compile"]

    def undo(self, steps: int) -> None:
        """Counts the time of so many steps of this process as lost."""
        spent = self.seconds["step"] + self.seconds["data"] - self.seconds["lost"]
        self.seconds["lost"] += spent * min(1.0, steps / max(self.steps, 1))

    def reading(self) -> dict[str, float]:
        """The totals of this process so far, for a line of events.jsonl."""
        return {"began": self.began, "wall": time.time() - self.began, **self.seconds}


def redone(metrics: list[dict], step: int, tokens_per_step: int) -> dict[str, float]:
    """The steps after `step` that are done again, and their seconds, by metrics.jsonl before it is cut back."""
    rows = [row for row in metrics if "tokens_per_second" in row and row["step"] > step]
    if not rows:
        return {"redone_steps": 0, "redone_seconds": 0.0}
    steps, rates = max(row["step"] for row in rows) - step, [row["tokens_per_second"] for row in rows]
    return {"redone_steps": steps, "redone_seconds": steps * tokens_per_step / (sum(rates) / len(rates))}


def total(events: list[dict], now: dict[str, float]) -> dict[str, float]:
    """Seconds by kind over the whole run: the last reading of every process in `events`, and `now` of this one.

    What a killed process did after its last reading is only known as steps that were done again. Their time is added
    to the wall, and counts as lost.
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
    """Shares of the wall time: steps that counted, what they waited for, and everything else."""
    wall = max(seconds["wall"], 1e-9)
    named = {"steps": max(0.0, seconds["step"] - seconds["lost"]), "waiting for data": seconds["data"]}
    named |= {"lost": seconds["lost"], "evaluation": seconds["eval"], "saving": seconds["checkpoint"]}
    named |= {"compiling": seconds["compile"], "start-up": seconds["start-up"]}
    named["other"] = max(0.0, wall - sum(named.values()))
    return {name: value / wall for name, value in named.items()}


def line(seconds: dict[str, float]) -> str:
    """The line on time that a run ends with."""
    parts = ", ".join(f"{name} {100 * part:.1f} %" for name, part in shares(seconds).items() if part >= 0.0005)
    times = f" in {seconds['processes']} starts" if seconds["processes"] > 1 else ""
    return f"time        {clock(seconds['wall'])}{times}: {parts}"
