"""Pictures that read on light and dark pages alike: an opaque light card, colours that the colour-blind tell apart.

Without pyplot, which would change what a notebook draws with.
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
    """A figure of so many inches and its axes, row by row; a cell of a notebook that ends in it shows it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=CARD)
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(png, figure)  # IPython's own way would need pyplot, and its backend
    axes = [figure.add_subplot(rows, columns, i + 1, facecolor=CARD) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(axis, found: Mapping[str, Sequence[Mapping[float, float]]], legend: bool = True) -> None:
    """Draws {x: y} of several seeds under each label: the mean where all seeds have it, and their range as a band."""
    for i, (label, seeds) in enumerate(found.items()):
        color, xs = COLORS[i % len(COLORS)], sorted(set.intersection(*map(set, seeds)))
        at = [[seed[x] for seed in seeds] for x in xs]
        marker = {"marker": "o", "markersize": 3} if len(xs) < 25 else {}
        axis.plot(xs, [*map(statistics.fmean, at)], color=color, label=label, lw=1.6, **marker)
        axis.fill_between(xs, [*map(min, at)], [*map(max, at)], color=color, alpha=0.15, lw=0)
    axis.grid(alpha=0.3)
    if legend:
        axis.legend(frameon=False)


def dots(axis, found: Mapping[str, Sequence[float]]) -> None:
    """Draws the values of several seeds in a line per label, the first one on top: each a dot, their mean a bar."""
    for y, values in enumerate(found.values()):
        color = COLORS[y % len(COLORS)]
        axis.plot(values, [y] * len(values), "o", color=color, alpha=0.5, markersize=5)
        axis.plot([statistics.fmean(values)], [y], "|", color=color, markersize=18, markeredgewidth=2.5)
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)


def few_ticks():
    """Ticks at 1, 2, 5, 10, 20, … of a logarithmic axis, as many as fit."""
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 2, 5), numticks=9)


def tokens(number: int) -> str:
    """A length as people say it: 2048 is 2k."""
    return f"{number // 1024}k" if number % 1024 == 0 else str(number)


def png(figure) -> bytes:
    """The picture, as a file has it."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def save(figure, path: Path) -> None:
    """Writes a PNG, on a disk or into a bucket."""
    storage.write_atomically(storage.path(path), png(figure))
