"""Table 3 of the report: perplexity of long texts, with the extensions of the context switched on one by one.

The first N tokens of a text are cut into windows that do not overlap, for each window length anew. A window is read as
a text of its own, and all its tokens except the first are scored. So every length scores the same text, and a longer
window gives more context. Perplexity depends on the tokenizer; bits per byte do not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qwenjax.common import figures
from qwenjax.config import ModelConfig, doubling_windows
from qwenjax.eval.task import ResultCache, Settings, short_hash

if TYPE_CHECKING:
    from qwenjax.api.model import Model

MODEL = "language"
ROWS = ("plain", "+ ntk", "+ ntk + logn", "+ ntk + logn + window")

# Table 3: perplexity by window length, on arXiv papers that were not published. The rows with T = 8192 and of 72B are
# from the README of the releases.
TABLE_3 = {
    "Qwen-7B (T=2048)": {
        "plain": {1024: 4.23, 2048: 3.78, 4096: 39.35, 8192: 469.81, 16384: 2645.09},
        "+ ntk": {1024: 4.23, 2048: 3.78, 4096: 3.59, 8192: 3.66, 16384: 5.71},
        "+ ntk + logn": {1024: 4.23, 2048: 3.78, 4096: 3.58, 8192: 3.56, 16384: 4.62},
        "+ ntk + logn + window": {1024: 4.23, 2048: 3.78, 4096: 3.58, 8192: 3.49, 16384: 4.32},
    },
    "Qwen-14B (T=2048)": {
        "plain": {2048: 3.46, 4096: 22.79, 8192: 334.65, 16384: 3168.35},
        "+ ntk + logn + window": {2048: 3.46, 4096: 3.29, 8192: 3.18, 16384: 3.42},
    },
    "Qwen-1.8B (T=8192)": {
        "plain": {1024: 5.00, 2048: 4.48, 4096: 4.13, 8192: 3.89, 16384: 17.42, 32768: 433.85},
        "+ ntk + logn + window": {1024: 5.00, 2048: 4.48, 4096: 4.14, 8192: 3.93, 16384: 3.82, 32768: 3.83},
    },
    "Qwen-7B (T=8192)": {
        "plain": {1024: 4.23, 2048: 3.81, 4096: 3.52, 8192: 3.31, 16384: 7.27, 32768: 181.49},
        "+ ntk + logn + window": {1024: 4.23, 2048: 3.81, 4096: 3.52, 8192: 3.33, 16384: 3.22, 32768: 3.17},
    },
    "Qwen-72B (T=32768)": {"plain": {8192: 2.83, 16384: 2.73, 32768: 2.72}},
}


def variant(config: ModelConfig, row: str) -> ModelConfig:
    """The model of a row of the table. The layer windows double every four layers, from the training length on
    (docs/report.md, Context extension; the report does not give them)."""
    windows = doubling_windows(config.context, config.layers) if "window" in row else ()
    return replace(config, ntk="ntk" in row, logn="logn" in row, windows=windows)


def measure(model: "Model", settings: Settings, cache: ResultCache) -> dict:
    """Perplexity and bits per byte of `settings.text` by row and length; see `table`."""
    result = measure_windows({"table": 3}, "perplexity", ROWS, _score, model, settings, cache)
    return result | {"published": TABLE_3}


def measure_windows(
    task: dict, title: str, rows: Sequence[str], score: Callable, model: "Model", settings: Settings, cache: ResultCache
) -> dict:
    """`score(model, row, ids, length, step)` of the text in windows, by row of the table and length.

    Raises:
      ValueError: no text, or one that is shorter than a window.
    """
    lengths = sorted(set(settings.lengths))
    ids = read_text(settings.text, model.vocabulary, settings.tokens or lengths[-1])
    if len(ids) < lengths[-1]:
        few = f"{len(ids):,} tokens of {model.vocabulary.name}, fewer than a window of {lengths[-1]:,}"
        raise ValueError(f"{settings.text} has {few}; give a longer text, or smaller --lengths")
    task = task | {"text": short_hash(np.asarray(ids, np.int64).tobytes()), "tokens": len(ids)}
    # up to the training length no extension acts: all rows are the same model
    read_as = [(row if n > model.config.context else ROWS[0], n) for row in rows for n in lengths]
    values = cache.fill(
        title,
        [{**task, "row": row, "length": n} for row, n in read_as],
        lambda key: len(ids) // key["length"] * key["length"],
        lambda key, step: score(model, key["row"], ids, key["length"], step),
    )
    by_length = [{str(n): values.pop(0) for n in lengths} for _ in rows]
    table = {"text": settings.text, "context": model.config.context, "lengths": lengths}
    return task | table | {"rows": dict(zip(rows, by_length))}


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
    """Sums over all windows of a length."""
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
    published = [n for rows in TABLE_3.values() for cells in rows.values() for n in cells]
    columns = sorted({*result["lengths"], *published})
    blank = [""] * len(columns)

    def block(title: str, rows: dict[str, dict], form: str = "{:.2f}") -> list[list[str]]:
        numbers = {row: [form.format(cells[n]) if n in cells else "-" for n in columns] for row, cells in rows.items()}
        return [[title if row == "plain" else f"  {row}", *cells] for row, cells in numbers.items()]

    name = f"{result['model']} (T={result['context']})"
    lines = [
        ["perplexity", *map(str, columns)],
        *block(name, _ours(result, perplexity)),
        ["", *blank],
        ["bits per byte", *blank],
        *block(name, _ours(result, bits_per_byte), "{:.4f}"),
        ["", *blank],
        ["as published (report, Table 3)", *blank],
        *(line for title, rows in TABLE_3.items() for line in block(title, rows)),
    ]
    about = (
        f"{result['text']}: the first {result['tokens']:,} tokens, in windows of each length; all tokens except the "
        "first of a window. Published perplexities are of arXiv papers: compare the shape, not the values"
    )
    return "\n".join([about, "", *figures.aligned(lines)])


def plot(result: dict, path: Path) -> None:
    """Writes a PNG: perplexity over the window length, ours on the left and the report's Qwen-7B on the right."""
    figure, axes = figures.canvas(9.5, 4.2, columns=2)
    panels = {
        f"{result['model']}, T={result['context']}": _ours(result, perplexity),
        "Qwen-7B, T=2048, as published": TABLE_3["Qwen-7B (T=2048)"],
    }
    for ax, (title, rows) in zip(axes, panels.items()):
        figures.curves(ax, {row: [cells] for row, cells in rows.items()}, legend=ax is axes[0])
        ax.set(title=title, yscale="log", xlabel="tokens in a window", ylabel="perplexity")
        figures.token_axis(ax, sorted({n for cells in rows.values() for n in cells}))
        ax.yaxis.set_major_locator(figures.few_ticks())
        ax.yaxis.set_major_formatter("{x:g}")
    figures.save(figure, path)


def _ours(result: dict, metric: Callable[[dict], float]) -> dict[str, dict[int, float]]:
    """A metric of our measurements, by row and length."""
    return {row: {int(n): metric(sums) for n, sums in cells.items()} for row, cells in result["rows"].items()}
