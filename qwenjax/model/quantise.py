"""Frozen weights in 8 or 4 bits, each block of up to 64 neighbours with its own scale (QLoRA, arXiv 2305.14314, §3).

Blocks lie along the last axis, so that codes and scales keep the other axes of the weight: they are stacked over
layers and split over devices like the weight. Scales are float32 (the paper quantises them once more, which
saves 0.4 bits of 4.5).
"""

import itertools
from statistics import NormalDist

import jax
import jax.numpy as jnp

KINDS = ("int8", "nf4")
BLOCK = 64


def _normal_levels() -> tuple[float, ...]:
    """The sixteen values of NF4: quantiles of N(0, 1), with 0 among them, scaled to [-1, 1] (paper, §3, appendix E).

    Eight steps from 0 upwards and seven downwards, evenly spaced in probability, to the mean of 1 - 1/30, 1 - 1/32.
    """
    end = (1 - 1 / 30 + 1 - 1 / 32) / 2

    def quantiles(steps: int) -> list[float]:
        return [NormalDist().inv_cdf(0.5 + (end - 0.5) * i / steps) for i in range(1, steps + 1)]

    levels = [*(-q for q in reversed(quantiles(7))), 0.0, *quantiles(8)]
    return tuple(level / levels[-1] for level in levels)


LEVELS = _normal_levels()


def block_size(width: int) -> int:
    """Values that share a scale in rows of `width`: its largest divisor that is at most 64."""
    return max(n for n in range(1, BLOCK + 1) if width % n == 0)


def quantise(w: jax.Array, kind: str) -> dict[str, jax.Array]:
    """A weight [… n] as {"codes": …, "scale": [… n/block] float32}.

    int8 has codes [… n] int8, multiples of absmax/127. nf4 has codes [… n/2] uint8, two values a byte (the even
    one in the low half), each the nearest of LEVELS times absmax.

    Raises:
      ValueError: an unknown kind, or nf4 of an odd width.
    """
    if kind not in KINDS:
        raise ValueError(f"quantisation {kind!r} is unknown; known: {', '.join(KINDS)}")
    width = w.shape[-1]
    if kind == "nf4" and width % 2:
        raise ValueError(f"nf4 keeps two values in a byte, and a weight of shape {w.shape} has rows of odd width")
    blocks = w.astype(jnp.float32).reshape(*w.shape[:-1], -1, block_size(width))
    absmax = jnp.max(jnp.abs(blocks), axis=-1)
    units = (blocks / jnp.where(absmax == 0, 1, absmax)[..., None]).reshape(w.shape)  # in [-1, 1]
    if kind == "int8":
        return {"codes": jnp.round(units * 127).astype(jnp.int8), "scale": absmax / 127}
    thresholds = [(low + high) / 2 for low, high in itertools.pairwise(LEVELS)]
    codes = sum((units > bound).astype(jnp.uint8) for bound in thresholds)
    return {"codes": codes[..., ::2] | codes[..., 1::2] << 4, "scale": absmax}


def dequantise(q: dict[str, jax.Array]) -> jax.Array:
    """The float32 weight that `quantise` approximated."""
    codes, scale = q["codes"], q["scale"]
    if codes.dtype == jnp.int8:
        units = codes.astype(jnp.float32)
    else:
        levels = jnp.array(LEVELS, jnp.float32)
        pair = [levels.at[half].get(mode="promise_in_bounds") for half in (codes & 15, codes >> 4)]
        units = jnp.stack(pair, axis=-1).reshape(*codes.shape[:-1], -1)
    # repeats the scale instead of reshaping the codes: devices may split the axis within a block
    return units * jnp.repeat(scale, units.shape[-1] // scale.shape[-1], axis=-1)
