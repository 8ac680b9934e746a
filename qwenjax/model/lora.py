"""Low-rank adapters beside frozen weights: W stays, x W + alpha/rank · drop(x) A B is learned (arXiv 2106.09685).

Adapters are a second collection of variables, in the shape of the first: where parameters have `blocks/attn/q`,
adapters have {"a": [layers, *in, r], "b": [layers, r, *out]}. Weights in 8 or 4 bits are a third, `quantised`:

    trained, frozen = split(params, lora)
    trained["lora"] = nn.unbox(init(cfg, lora, rng))
    Transformer(cfg, compute, lora=lora).apply(variables(trained, frozen), tokens)

Finished adapters are merged into the weights (`merge`) before a model is prepared for decoding or saved.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import meta

from qwenjax.config import Lora, ModelConfig
from qwenjax.model import transformer
from qwenjax.model.quantise import KINDS, dequantise, quantise


class Target(NamedTuple):
    """The module of a projection, and which axes of its weight (without `layers`) are input and output."""

    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


TARGETS = {
    "q": Target("attn", (0,), (1, 2)),  # [d n h]
    "k": Target("attn", (0,), (1, 2)),
    "v": Target("attn", (0,), (1, 2)),
    "o": Target("attn", (0, 1), (2,)),  # [n h d]
    "gate": Target("mlp", (0,), (1,)),  # [d f]
    "up": Target("mlp", (0,), (1,)),
    "down": Target("mlp", (1,), (0,)),  # [d f], read from f to d
}


def init(cfg: ModelConfig, lora: Lora, rng: jax.Array) -> dict:
    """Fresh float32 adapters, boxed with the logical axes of their weights: A uniform in ±1/sqrt(inputs), B zero."""
    boxed = jax.eval_shape(lambda: transformer.init_params(cfg, rng))["blocks"]
    out: dict = {}
    for name, target in TARGETS.items():  # in this order, so that keys do not depend on that of lora.targets
        if name not in lora.targets:
            continue
        weight = boxed[target.module][name]
        (layers, *axes), (count, *sizes) = weight.names, weight.value.shape
        a_axes, a_shape = ([x[i] for i in target.inputs] for x in (axes, sizes))
        b_axes, b_shape = ([x[i] for i in target.outputs] for x in (axes, sizes))
        rng, key = jax.random.split(rng)
        bound = 1 / math.sqrt(math.prod(a_shape))
        a = jax.random.uniform(key, (count, *a_shape, lora.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((count, lora.rank, *b_shape), jnp.float32)
        out.setdefault(target.module, {})[name] = {
            "a": nn.LogicallyPartitioned(a, (layers, *a_axes, None)),
            "b": nn.LogicallyPartitioned(b, (layers, None, *b_axes)),
        }
    return {"blocks": out}


def split(params: dict, lora: Lora) -> tuple[dict, dict]:
    """A model's parameters in two: what is trained, and what is frozen, stored as `lora.base_dtype`.

    Returns: trained = {"params": those of `lora.modules_to_save`}, to which the caller adds adapters as "lora"; and
      frozen = {"params": the others, "quantised": projections as codes and scales}. The other parameters of an int8 or
      nf4 base are bfloat16. Boxed parameters give boxed results.
    Raises:
      ValueError: `lora.modules_to_save` names a head that is the input embedding, which is named embed.
    """
    names = lora.modules_to_save
    if missing := [name for name in names if name not in params]:
        raise ValueError(f"lora.modules_to_save={names}: the model has no {missing[0]}: its head is tied, use 'embed'")
    kept = {name: x for name, x in params.items() if name not in names}
    frozen: dict = {"params": kept, "quantised": {}}
    if lora.base_dtype in KINDS:
        blocks = {module: dict(x) for module, x in kept["blocks"].items()}
        codes: dict = {}
        for name, target in TARGETS.items():
            weight = blocks[target.module].pop(name)
            codes.setdefault(target.module, {})[name] = _unboxed(lambda w: quantise(w, lora.base_dtype), weight)
        frozen = {"params": {**kept, "blocks": blocks}, "quantised": {"blocks": codes}}
    dtype = jnp.dtype("float32" if lora.base_dtype == "float32" else "bfloat16")
    frozen["params"] = jax.tree.map(lambda w: w.astype(dtype), frozen["params"])
    saved = {name: params[name] for name in names}
    # float32 whatever the base is stored as: these are master parameters
    return {"params": jax.tree.map(lambda w: w.astype(jnp.float32), saved)}, frozen


def _unboxed(f: Callable[[jax.Array], dict], weight: Any) -> dict:
    """f(weight), boxed if the weight is. Scales are not split along the blocks, whose number may not divide evenly."""
    if not isinstance(weight, meta.AxisMetadata):
        return f(weight)
    out = {name: weight.replace_boxed(x) for name, x in f(weight.value).items()}
    out["scale"] = out["scale"].replace(names=(*weight.names[:-1], None))
    return out


def variables(trained: dict, frozen: dict) -> dict:
    """Collections for `Transformer.apply` from the two parts of `split`."""
    params = {**frozen["params"], **trained.get("params", {})}
    others = {"lora": trained.get("lora"), "quantised": frozen.get("quantised")}
    return {"params": params, **{name: x for name, x in others.items() if x}}


def merge(collections: dict, lora: Lora) -> dict:
    """Float32 parameters that compute the same as collections of `variables`: W (dequantised) + alpha/rank · A B."""
    params = jax.tree.map(lambda w: w.astype(jnp.float32), dict(collections["params"]))
    blocks = {module: dict(x) for module, x in params["blocks"].items()}
    for module, codes in collections.get("quantised", {}).get("blocks", {}).items():
        blocks[module] |= {name: dequantise(q) for name, q in codes.items()}
    for module, adapters in collections.get("lora", {}).get("blocks", {}).items():
        blocks[module] |= {name: blocks[module][name] + _product(name, ab, lora) for name, ab in adapters.items()}
    return {**params, "blocks": blocks}


def _product(name: str, ab: dict, lora: Lora) -> jax.Array:
    """alpha/rank · A B of all layers, in the order of the weight's axes."""
    target = TARGETS[name]

    def layer(a, b):
        axes = target.inputs + target.outputs
        product = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
        return product.transpose([axes.index(i) for i in range(len(axes))])

    a, b = (ab[x].astype(jnp.float32) for x in "ab")
    return jax.vmap(layer)(a, b) * (lora.alpha / lora.rank)
