"""Table 3 of the report: perplexity of long texts, with the extensions of the context switched on one by one.

The first N tokens of a text are cut into windows that do not overlap, for each window length anew. A window is read as
a text of its own, and all its tokens except the first are scored. So every length scores the same text, and a longer
window gives more context. Perplexity depends on the tokenizer; bits per byte do not.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qwenjax.common import figures
from qwenjax.common.progress import meter
from qwenjax.config import ModelConfig, doubling_windows
from qwenjax.eval.partial_results import ResultCache, short_hash
from qwenjax.eval.published import TABLE_3
from qwenjax.eval.task import Settings

if TYPE_CHECKING:
    from qwenjax.api.model import Model

MODEL = "language"
ROWS = ("plain", "+ ntk", "+ ntk + logn", "+ ntk + logn + window")


def variant(config: ModelConfig, row: str) -> ModelConfig:
    """The model of a row of the table. The layer windows double every four layers, from the training length on
    (docs/report.md, Context extension; the report does not give them)."""
    windows = doubling_windows(config.context, config.layers) if "window" in row else ()
    return replace(config, ntk="ntk" in row, logn="logn" in row, windows=windows)


def measure(model: "Model", settings: Settings, cache: ResultCache) -> dict:
    """Perplexity and bits per byte of `settings.text` by row and length; see `table`.

    Raises:
      ValueError: no text, or one that is shorter than a window.
    """
    lengths = sorted(set(settings.lengths))
    ids = read_text(settings.text, model.vocabulary, settings.tokens or lengths[-1])
    if len(ids) < lengths[-1]:
        raise ValueError(
            f"{settings.text} has {len(ids):,} tokens of {model.vocabulary.name}, fewer than a window of "
            f"{lengths[-1]:,}; give a longer text, or smaller --lengths"
        )
    text = {"text": short_hash(np.asarray(ids, np.int64).tobytes()), "tokens": len(ids)}
    rows: dict[str, dict[str, dict]] = {row: {} for row in ROWS}
    cells = []
    for row in ROWS:
        for length in lengths:
            # up to the training length no extension acts: all rows are the same model
            read_as = row if length > model.config.context else ROWS[0]
            cells.append((row, length, {"table": 3, **text, "row": read_as, "length": length}))
    missing = {(key["row"], n): len(ids) // n * n for _, n, key in cells if cache.get(key) is None}
    with meter("perplexity", sum(missing.values()), "token") as step:
        for row, length, key in cells:
            value = cache.get(key)
            if value is None:
                value = cache.add(key, _score(model, key["row"], ids, length, step))
            rows[row][str(length)] = value
    return {
        "table": 3,
        "text": settings.text,
        "tokens": len(ids),
        "context": model.config.context,
        "lengths": lengths,
        "rows": rows,
        "published": TABLE_3,
    }


def read_text(path: str, tokenizer, tokens: int) -> list[int]:
    """The first ids of a text file, at most `tokens`; only the part of the file that they need is read."""
    if not path:
        raise ValueError("perplexity needs a text: --text=FILE, of plain UTF-8 text")
    characters = 8 * tokens
    with Path(path).open(encoding="utf-8", newline="") as file:
        text = file.read(characters)
        ids = tokenizer.encode_ordinary(text)
        while len(ids) <= tokens and (more := file.read(characters)):  # one id more: the last may be cut short
            text += more
            ids = tokenizer.encode_ordinary(text)
    return ids[:tokens]


def _score(model, row: str, ids: list[int], length: int, step) -> dict:
    """Sums over all windows of a length: nats, scored tokens, and the bytes of these tokens."""
    prefix = list(model.vocabulary.prefix)
    body = length - len(prefix)
    windows = [ids[start : start + body] for start in range(0, len(ids) - body + 1, body)]
    texts = [prefix + window for window in windows]
    skip = max(len(prefix), 1)
    scored = replace(model, config=variant(model.config, row)).likelihoods(texts, step)
    nats = -sum(float(one.logprobs[skip - 1 :].sum(dtype=np.float64)) for one in scored)
    count = sum(len(text) - skip for text in texts)
    size = sum(len(model.vocabulary.decode_bytes(text[skip:])) for text in texts)
    return {"nats": nats, "tokens": count, "bytes": size, "windows": len(windows)}


def perplexity(sums: dict) -> float:
    """exp of the mean negative log-likelihood of a token; capped at exp(700)."""
    return math.exp(min(sums["nats"] / sums["tokens"], 700))


def bits_per_byte(sums: dict) -> float:
    """The size of the text in an arithmetic coder driven by the model, in bits per byte of the text."""
    return sums["nats"] / math.log(2) / sums["bytes"]


def table(result: dict) -> str:
    """The result as text: our perplexities, our bits per byte, and the published rows."""
    lengths = result["lengths"]
    columns = sorted({*lengths, *(n for rows in TABLE_3.values() for row in rows.values() for n in row)})
    width = max(24, len(result["model"]) + 12)

    def line(title: str, cells: dict, form: str = "{:.2f}") -> str:
        numbers = ((form.format(cells[n]) if n in cells else "-") for n in columns)
        return f"{title:<{width}}" + "".join(f"{number:>10}" for number in numbers)

    def block(title: str, rows: dict[str, dict], form: str = "{:.2f}") -> list[str]:
        return [line(title if row == "plain" else f"  {row}", cells, form) for row, cells in rows.items()]

    name = f"{result['model']} (T={result['context']})"
    return "\n".join(
        [
            f"{result['text']}: the first {result['tokens']:,} tokens, in windows of each length; "
            "all tokens except the first of a window",
            "",
            f"{'perplexity':<{width}}" + "".join(f"{n:>10}" for n in columns),
            *block(name, _ours(result, perplexity)),
            "",
            "bits per byte",
            *block(name, _ours(result, bits_per_byte), "{:.4f}"),
            "",
            "perplexity as published (report, Table 3), of arXiv papers: compare the shape, not the values",
            *(text for title, rows in TABLE_3.items() for text in block(title, rows)),
        ]
    )


def plot(result: dict, path: Path) -> None:
    """Writes a PNG: perplexity over the window length, ours on the left and the report's Qwen-7B on the right."""
    figure, axes = figures.canvas(9.5, 4.2, columns=2)
    panels = (
        (f"{result['model']}, T={result['context']}", _ours(result, perplexity)),
        ("Qwen-7B, T=2048, as published", TABLE_3["Qwen-7B (T=2048)"]),
    )
    for ax, (title, rows) in zip(axes, panels):
        for number, (row, cells) in enumerate(rows.items()):
            style = {
                "color": figures.COLORS[number],
                "marker": "osD^"[number],
                "linestyle": ("-", "--", "-.", ":")[number],
            }
            ax.plot(list(cells), list(cells.values()), label=row, markersize=5 - number / 2, **style)
        ax.set_title(title)
        ax.set_yscale("log")
        figures.token_axis(ax, sorted({n for cells in rows.values() for n in cells}))
        ax.yaxis.set_major_locator(figures.few_ticks())
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("tokens in a window")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("perplexity")
    axes[0].legend(frameon=False)
    figures.save(figure, path)


def _ours(result: dict, metric: Callable[[dict], float]) -> dict[str, dict[int, float]]:
    """A metric of our measurements, by row and length."""
    return {row: {int(n): metric(sums) for n, sums in cells.items()} for row, cells in result["rows"].items()}
