"""A scalar head instead of the output embedding: reward models read it at one token, value models at every token.

The report's reward model has "a pooling layer" that reads one end token (§3.2.1). It does not say which; here it is the
`<|im_end|>` of the answer. Axes: n sequences, t positions, d embed.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import linen as nn

from qwenjax.config import ModelConfig
from qwenjax.model import transformer


def headless(cfg: ModelConfig) -> ModelConfig:
    """The same network without parameters for an output embedding."""
    return replace(cfg, tie_embeddings=True)


def init_head(cfg: ModelConfig, rng: jax.Array) -> nn.LogicallyPartitioned:
    """Fresh weights [d] ~ N(0, 1 / (d + 1)²), boxed: small first scores, because RMSNorm's outputs have size 1."""
    w = jax.random.normal(rng, (cfg.embed,), jnp.float32) / (cfg.embed + 1)
    return nn.LogicallyPartitioned(w, ("norm",))


def values(
    network: transformer.Transformer, collections: dict, head: jax.Array, tokens: jax.Array, positions: jax.Array
) -> jax.Array:
    """float32 [n t]: the scalar at every position of tokens [n t], positions [n t] (-1: padding)."""
    hidden, _ = network.apply(collections, tokens, positions, rngs={})
    return jnp.einsum("ntd,d->nt", hidden.astype(jnp.float32), head)


def scores(
    network: transformer.Transformer,
    collections: dict,
    head: jax.Array,
    tokens: jax.Array,
    positions: jax.Array,
    end: jax.Array,
    rngs: dict | None = None,
) -> jax.Array:
    """float32 [n]: the scalar at position `end` [n] of each row of tokens [n t]: its end token."""
    hidden, _ = network.apply(collections, tokens, positions, rngs=rngs or {})
    last = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
    return jnp.einsum("nd,d->n", last.astype(jnp.float32), head)
