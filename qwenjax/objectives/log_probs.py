"""Log-probability and entropy per token with the head inside, in chunks: what PPO and DPO need of a policy.

`losses.next_token_loss` knows every token's weight in the forward pass and makes its gradients there. Here they come
from a loss computed later, so the backward pass makes each chunk's logits again: 8 T d v FLOPs instead of 6.
"""

import functools

import jax
import jax.numpy as jnp

from qwenjax.sharding import constrain, per_device

ROWS = ("batch", "length")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def token_log_probs(hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """log π(target) and the entropy -Σ π log π of every position, nats, float32 [b t] each; both differentiable.

    Args:
      hidden: [b t d], after the final norm; divided by the sampling temperature, if that is not 1.
      head: [d v], float32 master; used in hidden's dtype. All v rows count, as in training.
      targets: [b t] int32, the token that position t predicts: tokens[:, 1:] of a sequence, beside hidden[:, :-1].
      chunk: tokens per device whose logits exist at one time.
    """
    return _forward(hidden, head, targets, chunk)[0]


@jax.named_scope("log_probs")
def _forward(hidden, head, targets, chunk):
    def local(hidden, head, targets):
        def one(_, xs):
            h, y = xs
            scores = jnp.einsum("td,dv->tv", h, head, preferred_element_type=jnp.float32)
            norm = jax.nn.logsumexp(scores, axis=-1)
            hit = jnp.arange(head.shape[1])[None] == y[:, None]  # no gather: the vocabulary may be split over devices
            logp = scores - norm[:, None]
            entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
            return None, (jnp.sum(jnp.where(hit, logp, 0), axis=-1), entropy, norm)

        _, out = jax.lax.scan(one, None, (_cut(hidden, chunk), _cut(targets, chunk)))
        return tuple(x.reshape(-1)[: targets.size].reshape(targets.shape) for x in out)

    run = per_device(local, ((*ROWS, None), (None, "vocab"), ROWS), (ROWS,) * 3, keep=("tensor",))
    logp, entropy, norm = run(hidden, _gathered(head, hidden), targets)
    return (logp, entropy), (hidden, head, targets, entropy, norm)


@jax.named_scope("log_probs")
def _backward(chunk, residuals, cotangents):
    hidden, head, targets, entropy, norm = residuals

    def local(hidden, head, targets, entropy, norm, g_logp, g_entropy):
        def one(d_head, xs):
            h, y, ent, norm, gl, ge = xs
            logp = jnp.einsum("td,dv->tv", h, head, preferred_element_type=jnp.float32) - norm[:, None]
            probs = jnp.exp(logp)
            hit = jnp.arange(head.shape[1])[None] == y[:, None]
            d_scores = gl[:, None] * (hit - probs) - ge[:, None] * probs * (logp + ent[:, None])
            d_scores = d_scores.astype(h.dtype)
            d_head += jnp.einsum("td,tv->dv", h, d_scores, preferred_element_type=jnp.float32)
            return d_head, jnp.einsum("tv,dv->td", d_scores, head)

        xs = tuple(_cut(x, chunk) for x in (hidden, targets, entropy, norm, g_logp, g_entropy))
        d_head, d_hidden = jax.lax.scan(one, jnp.zeros(head.shape, jnp.float32), xs)
        return d_hidden.reshape(-1, hidden.shape[-1])[: targets.size].reshape(hidden.shape), d_head[None]

    run = per_device(
        local,
        ((*ROWS, None), (None, "vocab"), *(ROWS,) * 5),
        ((*ROWS, None), ("shards", None, "vocab")),
        keep=("tensor",),
    )
    d_hidden, d_head = run(hidden, _gathered(head, hidden), targets, entropy, norm, *cotangents)
    return d_hidden, constrain(jnp.sum(d_head, axis=0), "embed", "vocab").astype(head.dtype), None


token_log_probs.defvjp(_forward, _backward)


def _gathered(head, hidden):
    """The head in hidden's dtype, gathered over fsdp once rather than per chunk."""
    return constrain(head.astype(hidden.dtype), None, "vocab")


def _cut(x, chunk):
    """[b t …] -> [chunks, size, …]; the tail is padded with zeros, whose cotangents are zeros too."""
    tokens = x.shape[0] * x.shape[1]
    size = min(chunk, tokens)
    x = x.reshape(tokens, *x.shape[2:])
    return jnp.pad(x, [(0, -tokens % size)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, size, *x.shape[1:])
