"""Entropy of attention by context length (report §2.3.2): LogN scaling keeps it from growing with the length.

A text is read in windows of each length: plain, with dynamic NTK, and with NTK and LogN. The attention of a query is a
distribution over all positions up to it, with an entropy of at most ln(length). The result is the mean over the heads
and the last queries of each window, for each layer.
"""

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.common import figures
from qwenjax.eval.task import ResultCache, Settings
from qwenjax.eval.tasks import perplexity
from qwenjax.model.transformer import Transformer

if TYPE_CHECKING:
    from qwenjax.api.model import Model

MODEL = "language"
ROWS = perplexity.ROWS[:3]
QUERIES = 64  # the last ones of a window, or all of a shorter one


def measure(model: "Model", settings: Settings, cache: ResultCache) -> dict:
    """Mean entropy, nats, of each layer's attention, by row and length; see `table`."""
    return perplexity.measure_windows({"task": "entropy"}, "attention", ROWS, _mean, model, settings, cache)


def _mean(model: "Model", row: str, ids: list[int], length: int, step) -> list[float]:
    """Mean entropy of each layer over all windows of a length."""
    network = model.network.clone(cfg=perplexity.variant(model.config, row))
    by_window = []
    for start in range(0, len(ids) - length + 1, length):
        window = jnp.asarray([ids[start : start + length]], jnp.int32)
        by_window.append(np.asarray(entropies(model.params, window, network)))
        step(length)
    return np.mean(by_window, axis=0).tolist()


@functools.partial(jax.jit, static_argnums=2)
def entropies(params: dict, tokens: jax.Array, model: Transformer) -> jax.Array:
    """int [b t] -> [layers] float32: mean entropy, in nats, of the attention of the last QUERIES queries."""
    lengths = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
    _, collections = model.apply({"params": params}, tokens, lengths=lengths, mutable=["intermediates"])
    attn = collections["intermediates"]["blocks"]["attn"]
    (q,), (k,) = attn["q"], attn["k"]  # [layers b t n h], [layers b t k h]
    last = min(QUERIES, q.shape[2])
    q = q[:, :, -last:].reshape(*q.shape[:2], last, k.shape[3], -1, q.shape[-1]).astype(jnp.float32)
    scores = jnp.einsum("lbtkgh,lbskh->lbkgts", q, k.astype(jnp.float32)) / math.sqrt(q.shape[-1])
    future = jnp.arange(tokens.shape[1]) > jnp.arange(tokens.shape[1] - last, tokens.shape[1])[:, None]
    log_p = jax.nn.log_softmax(jnp.where(future, -jnp.inf, scores))
    return -jnp.mean(jnp.sum(jnp.where(future, 0, jnp.exp(log_p) * log_p), -1), axis=(1, 2, 3, 4))


def table(result: dict) -> str:
    """The result as text: the mean over the layers, a column for each length."""
    lengths = result["lengths"]
    rows = {row: [np.mean(cells[str(n)]) for n in lengths] for row, cells in result["rows"].items()}
    rows["ln(length)"] = [math.log(n) for n in lengths]
    table = [["", *map(str, lengths)], *([row, *(f"{x:.3f}" for x in values)] for row, values in rows.items())]
    about = (
        f"entropy of attention, {result['model']} (T={result['context']}), nats, mean over the layers; "
        f"{result['text']}: the first {result['tokens']:,} tokens"
    )
    return "\n".join([about, "", *figures.aligned(table)])


def plot(result: dict, path: Path) -> None:
    """Writes a PNG: the mean over the layers by length on the left, each layer at the greatest length on the right."""
    figure, (left, right) = figures.canvas(10.5, 3.8, 2)
    by_length = {row: [{int(n): float(np.mean(v)) for n, v in cells.items()}] for row, cells in result["rows"].items()}
    figures.curves(left, by_length)
    left.axvline(result["context"], ls="--", lw=1, color="#555555")
    figures.token_axis(left, result["lengths"])
    left.set(title="mean over the layers", xlabel="tokens in a window (dashed: trained on)", ylabel="entropy, nats")
    longest = result["lengths"][-1]
    at = {row: [dict(enumerate(cells[str(longest)], 1))] for row, cells in result["rows"].items()}
    figures.curves(right, at)
    right.set(title=f"at {longest:,} tokens", xlabel="layer")
    figures.save(figure, path)
