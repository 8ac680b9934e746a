"""Arithmetic of time intervals: arrays [n 2] of (start, end), any one unit."""

from collections.abc import Sequence

import numpy as np


def innermost(spans: Sequence[tuple[float, float]]) -> list[tuple[int, float, float]]:
    """Cuts nested spans of one thread into pieces that do not overlap: (index of the span, start, end).

    A piece belongs to the innermost span there, so that the pieces of a span add up to its self time.
    """
    pieces, open_spans, now = [], [], 0.0

    def close(until: float) -> None:
        nonlocal now
        while open_spans and spans[open_spans[-1]][1] <= until:
            index = open_spans.pop()
            if spans[index][1] > now:
                pieces.append((index, now, spans[index][1]))
                now = spans[index][1]

    for index in sorted(range(len(spans)), key=lambda i: (spans[i][0], -spans[i][1])):
        start = spans[index][0]
        close(start)
        if open_spans and start > now:
            pieces.append((open_spans[-1], now, start))
        now = max(start, now)
        open_spans.append(index)
    close(float("inf"))
    return pieces


def merge(spans: np.ndarray) -> np.ndarray:
    """The union of intervals: disjoint and sorted."""
    spans = spans[spans[:, 1] > spans[:, 0]]
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0])]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([spans[first, 0], reach[last]], axis=1)


def length(spans: np.ndarray) -> float:
    """Time covered by at least one of the intervals."""
    merged = merge(spans)
    return float((merged[:, 1] - merged[:, 0]).sum())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Time covered by `a` and by `b`: |A| + |B| - |A or B|."""
    return length(a) + length(b) - length(np.concatenate([a, b]))


def shares(spans: np.ndarray) -> np.ndarray:
    """The time of each interval [n], every moment shared equally by the intervals that are open in it.

    They add up to `length(spans)`, which is what makes shares of ops on several threads or streams add up to 100 %.
    """
    times = np.unique(spans)
    if len(times) < 2:
        return np.zeros(len(spans))
    starts, ends = np.searchsorted(times, spans[:, 0]), np.searchsorted(times, spans[:, 1])
    opened = np.bincount(starts, minlength=len(times)) - np.bincount(ends, minlength=len(times))
    active = np.cumsum(opened)[:-1]
    each = np.where(active > 0, np.diff(times) / np.maximum(active, 1), 0.0)
    total = np.concatenate([[0.0], np.cumsum(each)])
    return total[ends] - total[starts]
