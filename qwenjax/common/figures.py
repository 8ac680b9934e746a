"""Figures and tables for people.

Figures are readable on light and dark pages: an opaque light background, and colours that the colour-blind tell
apart. They do not use pyplot, which would change the backend of a notebook. Tables are aligned text or Markdown.
"""

import io
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from qwenjax.common import storage

COLORS = ("#d55e00", "#0072b2", "#009e73", "#8b5fbf", "#8c6d1f", "#555555", "#e377c2")
CARD = "#fbfbf8"


def canvas(width: float, height: float, columns: int = 1, rows: int = 1):
    """A figure of `width` x `height` inches and its axes, row by row; a notebook cell that ends in it shows it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=CARD)
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(png, figure)  # IPython's own formatter needs pyplot
    axes = [figure.add_subplot(rows, columns, i + 1, facecolor=CARD) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(axis, runs: Mapping[str, Sequence[Mapping[float, float]]], legend: bool = True) -> None:
    """Draws for each label the mean of its seeds' {x: y} and their range as a band, at the x that all seeds have."""
    for i, (label, seeds) in enumerate(runs.items()):
        color, xs = COLORS[i % len(COLORS)], sorted(set.intersection(*map(set, seeds)))
        ys = [[seed[x] for seed in seeds] for x in xs]
        marker = {"marker": "o", "markersize": 3} if len(xs) < 25 else {}
        axis.plot(xs, [*map(statistics.fmean, ys)], color=color, label=label, lw=1.6, **marker)
        axis.fill_between(xs, [*map(min, ys)], [*map(max, ys)], color=color, alpha=0.15, lw=0)
    axis.grid(alpha=0.3)
    if legend:
        axis.legend(frameon=False)


def dots(axis, runs: Mapping[str, Sequence[float]]) -> None:
    """Draws a line per label, the first on top: the value of each seed as a dot, their mean as a bar."""
    for y, values in enumerate(runs.values()):
        color = COLORS[y % len(COLORS)]
        axis.plot(values, [y] * len(values), "o", color=color, alpha=0.5, markersize=5)
        axis.plot([statistics.fmean(values)], [y], "|", color=color, markersize=18, markeredgewidth=2.5)
    axis.set_yticks(range(len(runs)), list(runs))
    axis.set_ylim(len(runs) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)


def token_axis(axis, lengths: Sequence[int]) -> None:
    """Makes the x axis one of lengths in tokens, logarithmic, with a tick at each."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [tokens(n) for n in lengths])
    axis.minorticks_off()


def few_ticks():
    """Ticks at 1, 2, 5, 10, 20, … of a logarithmic axis, as many as fit."""
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 2, 5), numticks=9)


def tokens(number: int) -> str:
    """A length in tokens, short: 2048 is 2k."""
    return f"{number // 1024}k" if number % 1024 == 0 else str(number)


def png(figure) -> bytes:
    """The figure as a PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def save(figure, path: Path) -> None:
    """Writes a figure as PNG, on a disk or into a bucket."""
    storage.write_atomically(storage.path(path), png(figure))


def aligned(rows: Sequence[Sequence[str]], left: int = 1, gap: str = "  ") -> list[str]:
    """Lines with columns of equal width: the first `left` columns aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
