"""Table 3 of the report: perplexity of long texts, with what extends the context switched on one after the other.

The first N tokens of a text are cut into windows that do not overlap, anew at each length. A window is read as a text
of its own, and all its tokens but the first are scored. So every length scores the same text, and the longer windows
know more of it, until the model is out of its depth.
Perplexity depends on how a vocabulary cuts text into tokens; bits per byte do not.
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
from qwenjax.eval.partial_results import Parts, hash_of
from qwenjax.eval.task import Settings

if TYPE_CHECKING:
    from qwenjax.api.model import Model

MODEL = "language"
ROWS = ("plain", "+ ntk", "+ ntk + logn", "+ ntk + logn + window")
ALL = ROWS[-1]

# Report, Table 3; of the releases with T = 8192 and of 72B, their README. On arXiv papers that were not published.
PUBLISHED = {
    "Qwen-7B (T=2048)": {
        "plain": {1024: 4.23, 2048: 3.78, 4096: 39.35, 8192: 469.81, 16384: 2645.09},
        "+ ntk": {1024: 4.23, 2048: 3.78, 4096: 3.59, 8192: 3.66, 16384: 5.71},
        "+ ntk + logn": {1024: 4.23, 2048: 3.78, 4096: 3.58, 8192: 3.56, 16384: 4.62},
        ALL: {1024: 4.23, 2048: 3.78, 4096: 3.58, 8192: 3.49, 16384: 4.32},
    },
    "Qwen-14B (T=2048)": {
        "plain": {2048: 3.46, 4096: 22.79, 8192: 334.65, 16384: 3168.35},
        ALL: {2048: 3.46, 4096: 3.29, 8192: 3.18, 16384: 3.42},
    },
    "Qwen-1.8B (T=8192)": {
        "plain": {1024: 5.00, 2048: 4.48, 4096: 4.13, 8192: 3.89, 16384: 17.42, 32768: 433.85},
        ALL: {1024: 5.00, 2048: 4.48, 4096: 4.14, 8192: 3.93, 16384: 3.82, 32768: 3.83},
    },
    "Qwen-7B (T=8192)": {
        "plain": {1024: 4.23, 2048: 3.81, 4096: 3.52, 8192: 3.31, 16384: 7.27, 32768: 181.49},
        ALL: {1024: 4.23, 2048: 3.81, 4096: 3.52, 8192: 3.33, 16384: 3.22, 32768: 3.17},
    },
    "Qwen-72B (T=32768)": {"plain": {8192: 2.83, 16384: 2.73, 32768: 2.72}},
}


def variant(config: ModelConfig, row: str) -> ModelConfig:
    """The model of a row of the table; windows double every four layers from the training length (spec §17)."""
    windows = doubling_windows(config.context, config.layers) if "window" in row else ()
    return replace(config, ntk="ntk" in row, logn="logn" in row, windows=windows)


def measure(model: "Model", settings: Settings, parts: Parts) -> dict:
    """Perplexity and bits per byte of `settings.text` by row and length; see `table`.

    Raises:
      ValueError: no text, or one that is shorter than a window.
    """
    lengths = sorted(set(settings.lengths))
    ids = read(settings.text, model.vocabulary, settings.tokens or lengths[-1])
    if len(ids) < lengths[-1]:
        raise ValueError(
            f"{settings.text} has {len(ids):,} tokens of {model.vocabulary.name}, fewer than a window of "
            f"{lengths[-1]:,}; give a longer text, or smaller --lengths"
        )
    text = {"text": hash_of(np.asarray(ids, np.int64).tobytes()), "tokens": len(ids)}
    rows: dict[str, dict[str, dict]] = {row: {} for row in ROWS}
    jobs = []
    for row in ROWS:
        for length in lengths:
            # Up to the training length nothing is extended: the rows are the same model
            read_as = row if length > model.config.context else ROWS[0]
            jobs.append((row, length, {"table": 3, **text, "row": read_as, "length": length}))
    unknown = {(of["row"], length): len(ids) // length * length for _, length, of in jobs if parts.get(of) is None}
    with meter("perplexity", sum(unknown.values()), "token") as step:
        for row, length, of in jobs:
            value = parts.get(of)
            if value is None:
                value = parts.add(of, _score(model, of["row"], ids, length, step))
            rows[row][str(length)] = value
    return {
        "table": 3,
        "text": settings.text,
        "tokens": len(ids),
        "context": model.config.context,
        "lengths": lengths,
        "rows": rows,
        "published": PUBLISHED,
    }


def read(path: str, tokenizer, tokens: int) -> list[int]:
    """The first ids of a file of plain text, at most that many; only as much of the file is read as they need."""
    if not path:
        raise ValueError("perplexity needs a text: --text=FILE, of plain UTF-8 text")
    characters = 8 * tokens
    with Path(path).open(encoding="utf-8", newline="") as file:
        text = file.read(characters)
        ids = tokenizer.encode_ordinary(text)
        while len(ids) <= tokens and (more := file.read(characters)):  # one more, since the last may be cut short
            text += more
            ids = tokenizer.encode_ordinary(text)
    return ids[:tokens]


def _score(model, row: str, ids: list[int], length: int, step) -> dict:
    """Sums over all windows of a length: nats, tokens scored, and the bytes that they stand for."""
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


def perplexity(part: dict) -> float:
    """exp of the mean negative log-likelihood of a token."""
    return math.exp(min(part["nats"] / part["tokens"], 700))


def bits_per_byte(part: dict) -> float:
    """What an arithmetic coder driven by the model would need."""
    return part["nats"] / math.log(2) / part["bytes"]


def table(result: dict) -> str:
    """The result for people: ours in perplexity and in bits per byte, then what was published."""
    lengths = result["lengths"]
    columns = sorted({*lengths, *(n for rows in PUBLISHED.values() for row in rows.values() for n in row)})
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
            "all tokens but a window's first",
            "",
            f"{'perplexity':<{width}}" + "".join(f"{n:>10}" for n in columns),
            *block(name, _ours(result, perplexity)),
            "",
            "bits per byte",
            *block(name, _ours(result, bits_per_byte), "{:.4f}"),
            "",
            "perplexity as published (report, Table 3), of arXiv papers: compare the shape, not the values",
            *(text for title, rows in PUBLISHED.items() for text in block(title, rows)),
        ]
    )


def draw(result: dict, path: Path) -> None:
    """Writes a PNG: our rows, and the report's Qwen-7B beside them, over the length of a window."""
    figure, axes = figures.canvas(9.5, 4.2, columns=2)
    sides = (
        (f"{result['model']}, T={result['context']}", _ours(result, perplexity)),
        ("Qwen-7B, T=2048, as published", PUBLISHED["Qwen-7B (T=2048)"]),
    )
    for ax, (title, rows) in zip(axes, sides):
        for number, (row, cells) in enumerate(rows.items()):
            style = {
                "color": figures.COLORS[number],
                "marker": "osD^"[number],
                "linestyle": ("-", "--", "-.", ":")[number],
            }
            ax.plot(list(cells), list(cells.values()), label=row, markersize=5 - number / 2, **style)
        ax.set_title(title)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        lengths = sorted({n for cells in rows.values() for n in cells})
        ax.set_xticks(lengths, [figures.tokens(n) for n in lengths])
        ax.minorticks_off()
        ax.yaxis.set_major_locator(figures.few_ticks())
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("tokens in a window")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("perplexity")
    axes[0].legend(frameon=False)
    figures.save(figure, path)


def _ours(result: dict, of: Callable[[dict], float]) -> dict[str, dict[int, float]]:
    """A number for each measured part, by row and length."""
    return {row: {int(n): of(part) for n, part in cells.items()} for row, cells in result["rows"].items()}
