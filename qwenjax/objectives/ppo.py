"""The losses of PPO, and its diagnostics (report §3.2.2; arXiv 1707.06347; InstructGPT, arXiv 2203.02155).

    policy:  L = mean over tokens of max(-A ρ, -A clip(ρ, 1-ε, 1+ε)),    ρ = π(a_t) / π_old(a_t)     `policy_loss`
    value:   L = mean over tokens of ½ max((V - R)², (V_old + clip(V - V_old, ±c) - R)²)              `value_loss`

A and R come from objectives/advantages.py; arrays are [t], of one response, as there. Callers `vmap`, add up the pairs
(sum, weight) and divide once, over the whole batch. Log-probabilities are those of the full softmax, also where
responses were sampled with top-p. Only the first argument gets a gradient.
"""

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import Weighted, masked_sum, zero_outside

MAX_LOG_RATIO = 20.0  # nats; exp of much more overflows, and 0 · inf is a NaN gradient


def _log_ratio(logp: jax.Array, other: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.clip(zero_outside(logp - jax.lax.stop_gradient(other), mask), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _surrogates(logp, old_logp, advantages, mask, clip_ratio):
    """The two losses of PPO per token: unclipped and clipped."""
    ratio = jnp.exp(_log_ratio(logp, old_logp, mask))
    advantages = jax.lax.stop_gradient(zero_outside(advantages, mask))
    return -advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)


def policy_loss(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, mask: jax.Array, clip_ratio: float = 0.2
) -> Weighted:
    """max(-A ρ, -A clip(ρ, 1-ε, 1+ε)) (PPO, eq. 7): (sum, tokens). ε, `clip_ratio`: PPO's 0.2, the report gives none.

    No gradient where the ratio has moved far enough in the direction that the advantage favours.
    """
    return masked_sum(jnp.maximum(*_surrogates(logp, old_logp, advantages, mask, clip_ratio)), mask)


def clip_fraction(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, mask: jax.Array, clip_ratio: float = 0.2
) -> Weighted:
    """(tokens whose policy loss is clipped, which have no gradient; tokens)."""
    free, clipped = _surrogates(logp, old_logp, advantages, mask, clip_ratio)
    return masked_sum(clipped > free, mask)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, value_clip: float = 0.15
) -> Weighted:
    """½ max((V - R)², (V_old + clip(V - V_old, ±c) - R)²): (sum, tokens). c, `value_clip`, is 0.15: report §3.2.2."""
    values = zero_outside(values, mask)
    old, returns = jax.lax.stop_gradient((zero_outside(old_values, mask), zero_outside(returns, mask)))
    near = old + jnp.clip(values - old, -value_clip, value_clip)
    return masked_sum(0.5 * jnp.maximum((values - returns) ** 2, (near - returns) ** 2), mask)


def kl_k1(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """log π - log π_ref per token: unbiased for KL(π ‖ π_ref) under samples of π, high variance, may be negative.

    Use it in a reward, not as a loss: its gradient is 0 in expectation.
    """
    return zero_outside(logp - jax.lax.stop_gradient(ref_logp), mask)


def kl_k3(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """e^d - 1 - d, d = log π_ref - log π, per token: unbiased, never negative (Schulman 2020, Approximating KL)."""
    d = -_log_ratio(logp, ref_logp, mask)
    return jnp.expm1(d) - d


def adaptive_kl(kl_coef: jax.Array, kl: jax.Array, target: float, sequences: int, horizon: float = 10_000) -> jax.Array:
    """The next KL coefficient: β (1 + clip(KL / target - 1, ±0.2) n / horizon) (Ziegler et al. 2019, §2.2).

    kl and target are nats per sequence; n, `sequences`, were sampled since the last call.
    """
    return kl_coef * (1 + jnp.clip(kl / target - 1, -0.2, 0.2) * (sequences / horizon))


def truncated_mass(logp: jax.Array, drawn_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - π(a) / q(a) per token, q being the distribution sampled from: at temperature 1, what top-p cut off."""
    return -jnp.expm1(_log_ratio(logp, drawn_logp, mask))
