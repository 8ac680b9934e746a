"""Rows as people read them: which documents a row was cut from, and their text."""

from qwenjax.data.stream import Mixture

END = "⟦end⟧"  # where a document ends; "…" is where the row cuts one


def describe(mixture: Mixture, row: int, tokenizer) -> list[str]:
    """A row as lines: where it is, then for each document its origin, its tokens here, and the text they spell."""
    place, tokens = mixture.locate(row), mixture.row(row)
    first, end = place.offset, place.offset + len(tokens)
    directory = mixture.shards[place.source].directory
    where = f"source {place.source} ({directory}), epoch {place.epoch}, window {place.window}"
    lines = [f"row {row}: {where}, tokens {first} to {end - 1}"]
    for span in mixture.documents(row):
        a, b = max(span.start, first), min(span.stop, end)
        begins, ends = a == span.start, b == span.stop
        text = tokenizer.decode(tokens[a - first : b - first - ends].tolist())
        part = f"its tokens {a - span.start} to {b - span.start - 1} of {span.stop - span.start}"
        lines.append(f"--- {span.origin}: {part}, {a - first} to {b - first - 1} of the row")
        lines.append(("" if begins else "…") + text + (END if ends else "…"))
    return [*lines, ""]
