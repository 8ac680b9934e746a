"""Pictures that read on light and dark pages alike: an opaque light card, colours that the colour-blind tell apart."""

from pathlib import Path

COLORS = ("#d55e00", "#0072b2", "#009e73", "#8b5fbf")
CARD = "#fbfbf8"


def canvas(width: float, height: float, columns: int = 1):
    """A figure of so many inches and its axes, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=CARD)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, i + 1, facecolor=CARD) for i in range(columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def few_ticks():
    """Ticks at 1, 2, 5, 10, 20, … of a logarithmic axis, as many as fit."""
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 2, 5), numticks=9)


def tokens(number: int) -> str:
    """A length as people say it: 2048 is 2k."""
    return f"{number // 1024}k" if number % 1024 == 0 else str(number)


def save(figure, path: Path) -> None:
    """Writes a PNG."""
    figure.savefig(path, dpi=110)
