"""Log-probability and entropy per token with the head inside, in chunks: what PPO and DPO need of a model.

`cross_entropy.next_token_loss` knows every token's weight in the forward pass and computes its gradients there. Here
they come from a loss computed later, so the backward pass computes each chunk's logits again: 8 T d v FLOPs, not 6.
"""

import functools

import jax
import jax.numpy as jnp

from qwenjax.objectives.cross_entropy import TOKENS, from_chunks, gathered_head, into_chunks
from qwenjax.sharding import constrain, per_device


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def token_log_probs(hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """log π(target) and the entropy -Σ π log π of every position, nats, float32 [b t] each; both differentiable.

    Args:
      hidden: [b t d], after the final norm, divided by the sampling temperature if that is not 1.
      head: [d v], float32 master; used in hidden's dtype. chunk: tokens per device whose logits are in memory at once.
      targets: [b t] int32, the token that position t predicts: tokens[:, 1:] of a sequence, with hidden[:, :-1].
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

        _, out = jax.lax.scan(one, None, into_chunks(chunk, hidden, targets))
        return tuple(from_chunks(x, targets.shape) for x in out)

    run = per_device(local, ((*TOKENS, None), (None, "vocab"), TOKENS), (TOKENS,) * 3, keep=("tensor",))
    logp, entropy, norm = run(hidden, gathered_head(head, hidden), targets)
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

        xs = into_chunks(chunk, hidden, targets, entropy, norm, g_logp, g_entropy)
        d_head, d_hidden = jax.lax.scan(one, jnp.zeros(head.shape, jnp.float32), xs)
        return from_chunks(d_hidden, hidden.shape), d_head[None]

    run = per_device(
        local,
        ((*TOKENS, None), (None, "vocab"), *(TOKENS,) * 5),
        ((*TOKENS, None), ("shards", None, "vocab")),
        keep=("tensor",),
    )
    d_hidden, d_head = run(hidden, gathered_head(head, hidden), targets, entropy, norm, *cotangents)
    return d_hidden, constrain(jnp.sum(d_head, axis=0), "embed", "vocab").astype(head.dtype), None


token_log_probs.defvjp(_forward, _backward)
