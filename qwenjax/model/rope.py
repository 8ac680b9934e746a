"""Rotary position embedding (report §2.3.1) and its extensions beyond the training length (§2.3.2).

Angles, their sines and the rotation are float32 whatever the activations' dtype, as in the released modeling_qwen.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.config import ModelConfig


def inverse_frequencies(head_dim: int, base: float | jax.Array) -> jax.Array:
    """[h/2] float32: base^(-2i/h); a base [… 1] gives […, h/2]."""
    return 1.0 / (base ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim))


def ntk_alpha(lengths: jax.Array, context: int) -> jax.Array:
    """max(2^ceil(log2(L/T) + 1) - 1, 1) of int32 lengths L: 1 up to T, 3 up to 2T, 7 up to 4T, …

    Computed in integers (modeling_qwen.py uses a logarithm), because rounding would err at the borders themselves.
    """
    chunks = (jnp.maximum(lengths, 1) - 1) // context  # full ones before the last
    return (2 << (32 - jax.lax.clz(chunks))) - 1


def ntk_border(length: int, context: int) -> int:
    """The greatest length (T, 2T, 4T, …) with the same alpha as this one."""
    return context << ((length - 1) // context).bit_length()


def cos_sin(positions: jax.Array, cfg: ModelConfig, lengths: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """[b t] int32 -> cosines and sines [b t 1 h/2], float32, of every position's angles.

    lengths: [b] int32; from a row's length dynamic NTK gets its base, base · alpha^(h/(h-2)). None: training, no NTK.
    """
    h, base, scaling = cfg.head_size, cfg.rope_base, cfg.rope_scaling
    if lengths is not None and (cfg.ntk or scaling.kind == "dynamic"):
        if cfg.ntk:
            alpha = ntk_alpha(lengths, cfg.context).astype(jnp.float32)
        else:
            beyond = jnp.maximum(lengths - cfg.context, 0).astype(jnp.float32)
            alpha = 1 + scaling.factor * beyond / cfg.context
        base = (base * alpha ** (h / (h - 2)))[:, None, None, None]
    frequencies, size = inverse_frequencies(h, base), 1.0
    if scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind in ("yarn", "llama3"):
        kept = yarn_kept(cfg) if scaling.kind == "yarn" else llama3_kept(cfg)
        frequencies = frequencies * kept + frequencies / scaling.factor * (1 - kept)
    if scaling.kind == "yarn":  # scales queries and keys, so that attention stays as sharp
        size = scaling.attention or 0.1 * math.log(scaling.factor) + 1
    # rope_dtype is float32, except to measure what bfloat16 would cost
    frequencies = frequencies.astype(cfg.rope_dtype).astype(jnp.float32)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if size == 1 else (cos * size, sin * size)


def yarn_kept(cfg: ModelConfig) -> np.ndarray:
    """[h/2] float32: which share of each frequency YaRN keeps (arXiv 2309.00071, "NTK-by-parts"); the rest is divided.

    1 where it makes more than beta_fast turns within the original context, 0 where fewer than beta_slow; linear in
    the index between, from the last index before to the first behind, as in published models.
    """
    scaling, h = cfg.rope_scaling, cfg.head_size
    original = scaling.original or cfg.context

    def index(turns):  # where base^(-2i/h) · original = 2π · turns
        return h * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_base))

    low, high = max(math.floor(index(scaling.beta_fast)), 0), min(math.ceil(index(scaling.beta_slow)), h - 1)
    ramp = (np.arange(h // 2, dtype=np.float32) - low) / max(high - low, 1e-3)
    return 1 - np.clip(ramp, 0, 1)


def llama3_kept(cfg: ModelConfig) -> np.ndarray:
    """[h/2] float32: which share of each frequency Llama 3.1 keeps: linear in its turns within the original context."""
    scaling, h = cfg.rope_scaling, cfg.head_size
    frequencies = cfg.rope_base ** (-np.arange(0, h, 2, dtype=np.float64) / h)
    turns = (scaling.original or cfg.context) * frequencies / (2 * math.pi)
    kept = (turns - scaling.beta_slow) / (scaling.beta_fast - scaling.beta_slow)
    return np.clip(kept, 0, 1).astype(np.float32)


def logn(positions: jax.Array, context: int) -> jax.Array:
    """[b t] int32 -> [b t 1 1] float32: log_T(p + 1) for positions p >= T, else 1; scales the query (report §2.3.2)."""
    scale = jnp.log(jnp.maximum(positions + 1, context).astype(jnp.float32)) / math.log(context)
    return jnp.where(positions < context, 1.0, scale)[..., None, None]


@jax.custom_vjp
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """[b t n h] rotated by its positions: x·cos + concat(-x2, x1)·sin, where x1 and x2 are the halves of the head.

    Both ways below give the same bits. The gradient is the inverse rotation; positions have none.
    """
    return jax.lax.platform_dependent(x, cos, sin, tpu=_by_permutation, default=_by_halves)


rotate.defvjp(lambda x, cos, sin: (rotate(x, cos, sin), (cos, sin)), lambda t, g: (rotate(g, t[0], -t[1]), None, None))


def _by_halves(x, cos, sin):
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def _by_permutation(x, cos, sin):
    """Swaps the halves by a product with a matrix of 0 and ±1, which is exact.

    Half a head is 64 of a TPU's 128 lanes: splitting and joining takes three passes over memory, the product one.
    """
    half = x.shape[-1] // 2
    eye = np.eye(half, dtype=np.float32)
    swap = np.block([[np.zeros_like(eye), eye], [-eye, np.zeros_like(eye)]])
    turned = jnp.einsum("btnh,hg->btng", x, swap.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
    cos, sin = (jnp.concatenate([part, part], axis=-1) for part in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x.dtype)
