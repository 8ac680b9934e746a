"""Attention: one contract, several backends.

Training on packed rows, prefill and decoding with a cache are the same call: positions and segments carry the
difference. Every backend passes tests/model/test_attention.py or refuses what it cannot do:

  backend  on    takes                                                     keeps, of [b t n h] queries
  xla      any   everything: the reference                                 scores [b n t s]
  splash   TPU   whole rows, width and length (each chunk) multiples of    results, per query one float32; rows may
                 128; no dropout                                           be split by position: model/zigzag.py
  cudnn    GPU   whole rows in one piece, bfloat16, width to 128, length   the same, and of packed rows a mask
                 even; no dropout                                          [b 1 t t]

`compute.attention=auto` takes the kernel of the platform if it can do the run (`config.Experiment.compute_on`), and
caches are always read by xla. Where the mesh splits positions, the partitioner gathers keys and values for xla.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e30  # finite: a row that sees nothing must not become NaN


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_pos: jax.Array,
    k_pos: jax.Array,
    q_segment: jax.Array | None = None,
    k_segment: jax.Array | None = None,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
    backend: str = "xla",
) -> jax.Array:
    """Causal softmax attention over the positions a query may see, scaled by 1/sqrt(h).

    A query sees a key if both belong to the same segment, the key's position is not later than the query's, and, with
    a window, is less than `window` positions back.

    Args:
      q: [b t n h], rotary applied. k, v: [b s k h] with n a multiple of k; s > t when a cache is read.
      q_pos: [b t] int32; -1 marks padding. k_pos: [b s] int32; -1 marks an empty slot.
      q_segment, k_segment: [b t], [b s] int32, or None when every row is one document.
      window: see only this many latest positions, the own one included; None sees all.
      dropout, rng: probability of dropping an attention weight, and the key to draw with.
      backend: a key of BACKENDS; one that cannot do a case raises.
    Returns: [b t n h] in v's dtype; 0 where a query sees no key. Scores and softmax are float32.
    """
    if backend not in BACKENDS:
        raise ValueError(f"no attention backend {backend!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[backend](q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng)


def visible(q_pos, k_pos, q_segment, k_segment, window) -> jax.Array:
    """[b t s] bool: which keys each query sees; see `attend`."""
    age = q_pos[:, :, None] - k_pos[:, None, :]
    seen = (age >= 0) & (k_pos >= 0)[:, None, :]
    if window is not None:
        seen &= age < window
    if q_segment is not None:
        seen &= q_segment[:, :, None] == k_segment[:, None, :]
    return seen


def _xla(q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng):
    b, t, n, h = q.shape
    # heads before positions: CPU matmuls then read and write every [t s] array as it lies
    q = (q * h**-0.5).reshape(b, t, k.shape[2], n // k.shape[2], h).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    seen = visible(q_pos, k_pos, q_segment, k_segment, window)[:, None, None]
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores += jnp.where(seen, 0.0, MASKED)  # a sum, because its gradient needs no mask
    # Softmax divided out of the result: its gradient then takes sums over h, not over s, of arrays of [t h]
    exps = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    norm = jnp.sum(exps, axis=-1)
    if dropout:
        keep = jax.random.bernoulli(rng, 1 - dropout, exps.shape)
        exps = jnp.where(keep, exps / (1 - dropout), 0.0)
    out = jnp.einsum("bkgts,bksh->bkgth", exps.astype(v.dtype), v, preferred_element_type=jnp.float32)
    # a query without any key would otherwise average all of them
    out = jnp.where(jnp.any(seen, axis=-1, keepdims=True), out / norm[..., None], 0.0)
    out = out.astype(v.dtype).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
    return checkpoint_name(out, "attn_out")  # what a recomputing backward pass may keep


# Imported when called, because kernels take as long to import as the rest of the model.
def _splash(*args):
    from qwenjax.model.attention import splash

    return splash.attend(*args)


def _cudnn(*args):
    from qwenjax.model.attention import cudnn

    return cudnn.attend(*args)


BACKENDS = {"xla": _xla, "splash": _splash, "cudnn": _cudnn}
