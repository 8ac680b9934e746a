"""Hidden states layer by layer, ours and those of transformers, on the same ids."""

import dataclasses
import functools
import operator
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from qwenjax.config import Compute, ModelConfig
from qwenjax.model import transformer

PLAIN = Compute(dtype="float32", remat="none", attention="xla", fuse="no")
ROWS, LENGTH = 2, 48
TOLERANCE = 1e-4  # of the largest value at a position: in float32, sums in another order differ by less


def compare(config: ModelConfig, params: dict, reference: Path) -> Iterator[str]:
    """Lines of a table, and what it says.

    Raises:
      ValueError: the two part; the first layer is named.
    """
    ids = np.random.default_rng(0).integers(0, config.vocab, (ROWS, min(LENGTH, config.context)))
    kind, theirs = _theirs(reference, ids)
    shape = " x ".join(map(str, ids.shape))
    yield f"mathematics   {kind} of transformers reads {reference}; both in float32, on {shape} ids"
    yield f"  {'after':<10} {'largest value':>14} {'difference':>12} {'relative':>10}"
    parted = None
    for (name, ours), other in zip(states(config, params, ids), theirs, strict=True):
        difference, largest = np.abs(ours - other).max(axis=-1), np.abs(other).max(axis=-1)
        relative = float((difference / np.maximum(largest, 1e-30)).max())
        yield f"  {name:<10} {largest.max():>14.4g} {difference.max():>12.1e} {relative:>10.1e}"
        if not relative <= TOLERANCE:
            parted = parted or name
    if parted:
        raise ValueError(f"the two part after {parted}: {kind} computes something else from there on")
    yield f"  they agree: no difference is above {TOLERANCE:g} of the largest value of its position"


def states(config: ModelConfig, params: dict, ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Ours: ('embedding', [b t d]), ('layer 0', …), …, ('logits', [b t v])."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    x = params["embed"][ids]
    yield "embedding", np.asarray(x)
    for i in range(config.layers):
        block = jax.tree.map(operator.itemgetter(slice(i, i + 1)), params["blocks"])
        windows = (config.windows[i],) if config.windows else ()
        x = _layer(block, params["norm"], x, config=dataclasses.replace(config, layers=1, windows=windows))
        yield f"layer {i}", np.asarray(x)
    head = {name: params[name] for name in ("embed", "head", "norm") if name in params}
    yield "logits", np.asarray(_logits(head, x, config=config))


def _skip_norm(call, args, kwargs, context):
    """In place of the final norm: nothing, so that the next layer gets what it would inside the model."""
    last = context.module.path == ("norm",) and context.method_name == "__call__"
    return args[0] if last else call(*args, **kwargs)


@functools.partial(jax.jit, static_argnames="config")
def _layer(block, norm, x, *, config):
    """One layer: a model whose vocabulary is the states themselves."""
    b, t, d = x.shape
    model = transformer.Transformer(dataclasses.replace(config, vocab=b * t, tie_embeddings=True), PLAIN)
    params = {"embed": x.reshape(b * t, d), "blocks": block, "norm": norm}
    with nn.intercept_methods(_skip_norm):
        out, _ = model.apply({"params": params}, jnp.arange(b * t).reshape(b, t), lengths=jnp.full(b, t))
    return out


@functools.partial(jax.jit, static_argnames="config")
def _logits(params, x, *, config):
    squares = jnp.mean(x**2, axis=-1, keepdims=True)
    return transformer.logits(params, x * jax.lax.rsqrt(squares + config.norm_eps) * params["norm"]["scale"])


def _theirs(reference: Path, ids: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """The name of the class, and what its embedding, layers and head give."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(reference, dtype="float32").eval()
    found: list[np.ndarray] = []

    def keep(module, args, output) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).numpy())

    for module in (model.model.embed_tokens, *model.model.layers):
        module.register_forward_hook(keep)
    with torch.no_grad():
        found.append(model(torch.from_numpy(ids)).logits.numpy())
    return type(model).__name__, found
