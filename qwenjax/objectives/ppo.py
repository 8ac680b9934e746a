"""Losses and diagnostics of PPO (report §3.2.2; Schulman et al., arXiv 1707.06347; InstructGPT, arXiv 2203.02155).

For one response, arrays [t] aligned to actions as in returns.py, mask True on its tokens; `vmap` and add up. A pair
(sum, weight) is divided once, over the whole batch; `masked_sum` makes one of what is per token, such as a KL estimate
or the entropy of log_probs.py. Log-probabilities are those of the full softmax, also where the rollout sampled by
top-p. Gradients reach the first argument only: not old log-probabilities, old values, reference, advantages, returns.
"""

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import Weighted, kept, masked_sum

FURTHEST = 20.0  # nats between two policies on one token; exp of more overflows, and 0 * inf is a NaN gradient


def _log_ratio(logp: jax.Array, other: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.clip(kept(logp - jax.lax.stop_gradient(other), mask), -FURTHEST, FURTHEST)


def _surrogates(logp, old_logp, advantages, mask, clip):
    """The two losses of PPO per token: unclipped and clipped."""
    ratio = jnp.exp(_log_ratio(logp, old_logp, mask))
    advantages = jax.lax.stop_gradient(kept(advantages, mask))
    return -advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)


def policy_loss(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, mask: jax.Array, clip: float = 0.2
) -> Weighted:
    """max(-A ρ, -A clip(ρ, 1-ε, 1+ε)) with ρ = π(a_t) / π_old(a_t) (PPO, eq. 7): (sum, tokens).

    The larger loss is the pessimistic one: no gradient where the ratio has gone far enough in the direction that the
    advantage wants, all of it where it has gone the other way. ε = 0.2 is PPO's; the report does not give one.
    """
    return masked_sum(jnp.maximum(*_surrogates(logp, old_logp, advantages, mask, clip)), mask)


def clip_fraction(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, mask: jax.Array, clip: float = 0.2
) -> Weighted:
    """(tokens whose policy loss is clipped, so without a gradient; tokens)."""
    free, clipped = _surrogates(logp, old_logp, advantages, mask, clip)
    return masked_sum(clipped > free, mask)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, clip: float = 0.15
) -> Weighted:
    """½ max((V - R)², (V_old + clip(V - V_old, ±c) - R)²): (sum, tokens). c = 0.15: report §3.2.2."""
    values = kept(values, mask)
    old, returns = jax.lax.stop_gradient((kept(old_values, mask), kept(returns, mask)))
    near = old + jnp.clip(values - old, -clip, clip)
    return masked_sum(0.5 * jnp.maximum((values - returns) ** 2, (near - returns) ** 2), mask)


def kl_k1(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """log π - log π_ref per token: unbiased for KL(π ‖ π_ref) under samples of π, high variance, may be negative.

    As a reward it is right; as a loss it is not: its gradient is 0 in expectation.
    """
    return kept(logp - jax.lax.stop_gradient(ref_logp), mask)


def kl_k3(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """e^d - 1 - d with d = log π_ref - log π, per token: unbiased, never negative (Schulman, "Approximating KL", 2020).

    Also the KL term of GRPO's loss.
    """
    d = -_log_ratio(logp, ref_logp, mask)
    return jnp.expm1(d) - d


def adaptive_kl(kl_coef: jax.Array, kl: jax.Array, target: float, sequences: int, horizon: float = 10_000) -> jax.Array:
    """The next KL coefficient: β (1 + clip(KL / target - 1, ±0.2) n / horizon) (Ziegler et al. 2019, §2.2).

    Args:
      kl: nats per sequence, mean of the batch.    sequences: n, sampled since the last call.
      horizon: sequences over which β may change by 20 %, about.
    """
    return kl_coef * (1 + jnp.clip(kl / target - 1, -0.2, 0.2) * (sequences / horizon))


def truncated_mass(logp: jax.Array, drawn_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """Probability per token that top-p (at temperature 1) had cut off: 1 - π(a) / q(a), q being what was drawn from.

    The rollout follows q, the loss takes π: this is how far off-policy that is.
    """
    return -jnp.expm1(_log_ratio(logp, drawn_logp, mask))
