"""The reference of the attention contract: matmuls and a softmax, for any platform, cache, mask and dropout."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e30  # finite: a query that sees nothing must not become NaN


def attend(q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng):
    """See `attention.attend`. Here `window` may be an array, when it differs between the layers of a scan."""
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


def visible(q_pos, k_pos, q_segment, k_segment, window) -> jax.Array:
    """[b t s] bool: which keys each query sees; see `attention.attend`."""
    age = q_pos[:, :, None] - k_pos[:, None, :]
    seen = (age >= 0) & (k_pos >= 0)[:, None, :]
    if window is not None:
        seen &= age < window
    if q_segment is not None:
        seen &= q_segment[:, :, None] == k_segment[:, None, :]
    return seen
