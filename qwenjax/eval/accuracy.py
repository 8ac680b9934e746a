"""How often a reward model puts pairs in the right order: by gap and by source, with confidence intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.96  # deviations of a 95 % interval


class ScoredPair(NamedTuple):
    """Two responses to one prompt: by how much the better one was rated, and scored, higher."""

    gap: float
    margin: float
    source: int


def pairs(scores: np.ndarray, ratings: np.ndarray, real: np.ndarray, source: np.ndarray) -> list[ScoredPair]:
    """All pairs of unequal ratings within lists [b k]; source [b]."""
    found = []
    for s, r, there, where in zip(scores, ratings, real, source):
        better, worse = np.nonzero((r[:, None] > r[None]) & there[:, None] & there[None])
        found += [ScoredPair(float(r[i] - r[j]), float(s[i] - s[j]), int(where)) for i, j in zip(better, worse)]
    return found


def right(some: Sequence[ScoredPair]) -> float:
    """Pairs in the right order; a tie is half right, or a constant model would look bad or perfect."""
    return sum(0.5 * (1 + np.sign(pair.margin)) for pair in some)


def interval(good: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): right for small n and near 0 and 1, too."""
    if not n:
        return 0.0, 1.0
    share, z2 = good / n, Z * Z
    middle, half = share + z2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


def numbers(some: Sequence[ScoredPair], margin: float = 0.0, smoothing: float = 0.0) -> dict[str, float]:
    """Loss (of the task with this margin or smoothing) and accuracy over all pairs, each counting once; {} of none."""
    if not some:
        return {}
    wrong = np.array([margin * pair.gap - pair.margin for pair in some])
    loss = np.mean((1 - smoothing) * np.logaddexp(0, wrong) + smoothing * np.logaddexp(0, -wrong))
    return {"eval_loss": float(loss), "eval_accuracy": right(some) / len(some)}


def by_gap(some: Sequence[ScoredPair]) -> list[tuple[str, list[ScoredPair]]]:
    """(title, pairs) of up to four parts about equally large, by how far the ratings are apart; [] if all are alike."""
    gaps = [p.gap for p in some]
    if len(set(gaps)) < 2:
        return []
    # gaps that there are, so that no part is empty
    edges, rows = sorted({float(q) for q in np.quantile(gaps, (0, 0.25, 0.5, 0.75), method="lower")}), []
    for low, high in zip(edges, [*edges[1:], math.inf]):
        title = f"gap {low:.3g} to {high:.3g}" if high < math.inf else f"gap {low:.3g} and more"
        rows.append((title, [p for p in some if low <= p.gap < high]))
    return rows


def table(some: Sequence[ScoredPair], names: Sequence[str]) -> list[str]:
    """Markdown: accuracy in all, by source and by how far the ratings are apart."""
    rows = [("all", some)]
    if len(names) > 1:
        rows += [(name, [p for p in some if p.source == s]) for s, name in enumerate(names)]
    rows += by_gap(some)
    lines = ["| held-out pairs | number | in the right order | 95 % interval |", "| --- | --- | --- | --- |"]
    for title, part in rows:
        low, high = interval(right(part), len(part))
        share = f"{right(part) / len(part):.1%}" if part else "-"
        lines.append(f"| {title} | {len(part):,} | {share} | {low:.1%} to {high:.1%} |")
    return lines
