"""Next-token cross entropy with the head inside, in chunks of tokens: logits [tokens 152k] are never all in memory.

Losses return sums. The caller divides once, by the weight of the whole batch, so that accumulation, padding and masks
cannot disagree. Axes: b batch, t position, d embed, v vocab.
"""

import functools

import jax
import jax.numpy as jnp

from qwenjax.sharding import constrain, per_device

TOKENS = ("batch", "length")  # logical axes of an array [b t]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def next_token_loss(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int
) -> jax.Array:
    """Summed weighted negative log-likelihood of the targets, nats, float32 scalar.

    Gradients are computed in the forward pass, while a chunk's logits are in memory: 6 T d v FLOPs, not 8.

    Args:
      hidden: [b t d], after the final norm. head: [d v], float32 master; used in hidden's dtype.
      targets: [b t] int32. weights: [b t] float32; 0 leaves a position out. Neither gets a gradient.
      chunk: tokens per device whose logits are in memory at a time.
    """
    return _chunks(hidden, head, targets, weights, chunk, gradients=False)[0]


def _forward(hidden, head, targets, weights, chunk):
    total, d_hidden, d_head = _chunks(hidden, head, targets, weights, chunk, gradients=True)
    return total, (d_hidden, d_head)


@jax.named_scope("loss")
def _backward(chunk, residuals, g):
    d_hidden, d_head = residuals
    return (g * d_hidden).astype(d_hidden.dtype), g * d_head, None, None


next_token_loss.defvjp(_forward, _backward)


@jax.named_scope("loss")
def _chunks(hidden, head, targets, weights, chunk, gradients):
    """(total, d_hidden [b t d], d_head [d v] float32); without gradients the last two are None."""

    def local(hidden, head, targets, weights):
        def one(carry, xs):
            total, d_head = carry
            h, y, w = xs
            scores = jnp.einsum("td,dv->tv", h, head, preferred_element_type=jnp.float32)
            top = jnp.max(scores, axis=-1, keepdims=True)
            exps = jnp.exp(scores - top)
            norm = jnp.sum(exps, axis=-1, keepdims=True)
            hit = jnp.arange(head.shape[1])[None] == y[:, None]  # no gather: the vocabulary may be split over devices
            nll = (top + jnp.log(norm))[:, 0] - jnp.sum(jnp.where(hit, scores, 0), axis=-1)
            total += jnp.sum(nll * w)
            if not gradients:
                return (total, None), None
            d_scores = ((exps / norm - hit) * w[:, None]).astype(h.dtype)
            d_head += jnp.einsum("td,tv->dv", h, d_scores, preferred_element_type=jnp.float32)
            return (total, d_head), jnp.einsum("tv,dv->td", d_scores, head)

        start = (jnp.float32(0), jnp.zeros(head.shape, jnp.float32) if gradients else None)
        (total, d_head), d_hidden = jax.lax.scan(one, start, into_chunks(chunk, hidden, targets, weights))
        if not gradients:
            return (total[None],)
        return total[None], from_chunks(d_hidden, hidden.shape), d_head[None]

    out = (("shards",), (*TOKENS, None), ("shards", None, "vocab")) if gradients else (("shards",),)
    run = per_device(local, ((*TOKENS, None), (None, "vocab"), TOKENS, TOKENS), out, keep=("tensor",))
    total, *grads = run(hidden, gathered_head(head, hidden), targets, weights)
    if not gradients:
        return jnp.sum(total), None, None
    return jnp.sum(total), grads[0], constrain(jnp.sum(grads[1], axis=0), "embed", "vocab")


def gathered_head(head: jax.Array, hidden: jax.Array) -> jax.Array:
    """The head [d v] in hidden's dtype, gathered over fsdp once rather than in every chunk."""
    return constrain(head.astype(hidden.dtype), None, "vocab")


def into_chunks(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Each [b t …] -> [chunks, size, …] with size <= chunk; the tail is padded with zeros: tokens of weight 0."""

    def one(x):
        tokens = x.shape[0] * x.shape[1]
        size = min(chunk, tokens)
        x = x.reshape(tokens, *x.shape[2:])
        return jnp.pad(x, [(0, -tokens % size)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, size, *x.shape[1:])

    return tuple(map(one, arrays))


def from_chunks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse: [chunks, size, …] -> `shape` = [b t …], without the padding."""
    return x.reshape(-1, *shape[2:])[: shape[0] * shape[1]].reshape(shape)
