"""Batches as pictures: where in the corpora a run reads, and which documents lie in its rows."""

from pathlib import Path
from typing import Any

from qwenjax.common import figures
from qwenjax.data.batches.text import TextMixture

NAMED = 60  # tokens from which a document's name has room in its bar


def draw_rows(mixture: TextMixture, first: int, rows: int, ahead: int, path: Path | str | None = None) -> Any:
    """A matplotlib figure of a run's data.

    On the left where each of `ahead` rows is read, as a share of its source: a permutation per epoch, so points fill
    the height evenly and never twice before the next epoch begins. On the right `rows` rows from `first` on, a bar per
    document in them, with its name.

    Args:
      path: also write it there, as a PNG.
    """
    figure, (left, right) = figures.canvas(13, 1.6 + 0.45 * max(rows, 5), 2)
    places = [mixture.locate(row) for row in range(ahead)]
    for source, shards in enumerate(mixture.shards):
        windows = mixture.order.windows[source]
        at = [(row, place.window / windows, place.epoch) for row, place in enumerate(places) if place.source == source]
        color, share = figures.COLORS[source % len(figures.COLORS)], len(at) / len(places)
        label = f"{shards.directory.name}: {share:.0%} of the rows, {len(at) / windows:.2f} epochs"
        if at:
            xs, ys, epochs = zip(*at)
            left.scatter(
                xs, ys, s=6, color=color, label=label, alpha=[0.9 if epoch % 2 == 0 else 0.45 for epoch in epochs]
            )
    left.set(title="where rows are read (fainter: odd epochs)", xlabel="row", ylabel="place in the source")
    left.legend(frameon=True, facecolor=figures.CARD, loc="upper center", bbox_to_anchor=(0.5, -0.16))

    for line in range(rows):
        row = first + line
        place = mixture.locate(row)
        end = place.offset + mixture.seq_len + 1
        for n, span in enumerate(mixture.documents(row)):
            a, b = max(span.start, place.offset) - place.offset, min(span.stop, end) - place.offset
            color = figures.COLORS[place.source % len(figures.COLORS)]
            right.barh(line, b - a, left=a, color=color, alpha=0.55 if n % 2 else 0.3, edgecolor=figures.CARD, lw=1.5)
            if b - a >= NAMED * mixture.seq_len / 256:
                name = span.origin.rsplit("/", 1)[-1]
                right.text(a + 2, line, name, va="center", fontsize=7, clip_on=True)
    right.set_yticks(range(rows), range(first, first + rows))
    right.invert_yaxis()
    right.set(title="the documents in a batch", xlabel="token of the row", ylabel="row", xlim=(0, mixture.seq_len + 1))
    if path:
        figures.save(figure, Path(path))
    return figure
