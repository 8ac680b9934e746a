"""How often a reward model puts pairs in the right order: by gap and by source, with confidence intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwenjax.common.figures import markdown

Z = 1.96  # deviations of a 95 % interval


class ScoredPair(NamedTuple):
    """Two responses to one prompt: the differences of their ratings (gap) and of their scores (margin)."""

    gap: float
    margin: float
    source: int


def ranked_pairs(scores: np.ndarray, ratings: np.ndarray, real: np.ndarray, source: np.ndarray) -> list[ScoredPair]:
    """All pairs of unequal ratings within lists of k responses; scores, ratings, real [b k], source [b]."""
    pairs = []
    for s, r, present, origin in zip(scores, ratings, real, source):
        better, worse = np.nonzero((r[:, None] > r[None]) & present[:, None] & present[None])
        pairs += [ScoredPair(float(r[i] - r[j]), float(s[i] - s[j]), int(origin)) for i, j in zip(better, worse)]
    return pairs


def num_correct(pairs: Sequence[ScoredPair]) -> float:
    """Pairs in the right order. A tie counts half: a constant model is then at chance, not at 0 or 1."""
    return sum(0.5 * (1 + np.sign(pair.margin)) for pair in pairs)


def wilson_interval(good: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): it holds for small n and near 0 and 1."""
    if not n:
        return 0.0, 1.0
    share, z2 = good / n, Z * Z
    middle, half = share + z2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


def loss_and_accuracy(pairs: Sequence[ScoredPair], margin: float = 0.0, smoothing: float = 0.0) -> dict[str, float]:
    """Mean loss (with the margin or smoothing of training) and accuracy over all pairs; {} for none."""
    if not pairs:
        return {}
    wrong = np.array([margin * pair.gap - pair.margin for pair in pairs])
    loss = np.mean((1 - smoothing) * np.logaddexp(0, wrong) + smoothing * np.logaddexp(0, -wrong))
    return {"eval_loss": float(loss), "eval_accuracy": num_correct(pairs) / len(pairs)}


def by_gap(pairs: Sequence[ScoredPair]) -> list[tuple[str, list[ScoredPair]]]:
    """(title, pairs) of up to four groups of about equal size by rating gap; [] if all gaps are equal."""
    gaps = [p.gap for p in pairs]
    if len(set(gaps)) < 2:
        return []
    # method='lower' gives gaps that occur, so no group is empty
    edges, rows = sorted({float(q) for q in np.quantile(gaps, (0, 0.25, 0.5, 0.75), method="lower")}), []
    for low, high in zip(edges, [*edges[1:], math.inf]):
        title = f"gap {low:.3g} to {high:.3g}" if high < math.inf else f"gap {low:.3g} and more"
        rows.append((title, [p for p in pairs if low <= p.gap < high]))
    return rows


def markdown_table(pairs: Sequence[ScoredPair], names: Sequence[str]) -> list[str]:
    """Markdown lines: accuracy over all pairs, by source, and by rating gap."""
    rows = [("all", pairs)]
    if len(names) > 1:
        rows += [(name, [p for p in pairs if p.source == s]) for s, name in enumerate(names)]
    rows += by_gap(pairs)
    cells = []
    for title, part in rows:
        low, high = wilson_interval(num_correct(part), len(part))
        share = f"{num_correct(part) / len(part):.1%}" if part else "-"
        cells.append((title, f"{len(part):,}", share, f"{low:.1%} to {high:.1%}"))
    return markdown(("held-out pairs", "number", "in the right order", "95 % interval"), cells)
