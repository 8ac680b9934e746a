"""Learning from comparisons: the reward model's pairwise loss, ranked lists, DPO (report §3.2.1).

The report prints no loss; this is InstructGPT's (arXiv 2203.02155, eq. 1). Scores and sequence log-probabilities are
[p], one entry per pair; `real` [p] is False for entries that only fill up a batch.
"""

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import Weighted, masked_mean, masked_sum, masked_variance, zero_outside


def pairwise_loss(chosen: jax.Array, rejected: jax.Array, real: jax.Array, margin: jax.Array | float = 0.0) -> Weighted:
    """-log σ(r_chosen - r_rejected - m): (sum, pairs), Bradley-Terry's likelihood.

    margin: m, a number or [p] (Llama 2, arXiv 2307.09288, eq. 2); the report mentions none.
    """
    return masked_sum(jax.nn.softplus(-zero_outside(chosen - rejected - margin, real)), real)


def ranked_loss(scores: jax.Array, ratings: jax.Array, real: jax.Array, margin: float = 0.0) -> Weighted:
    """All pairs of one prompt's k rated responses: (mean of their losses, 1).

    Args:
      scores, ratings, real: [k]; a higher rating is better, only the order counts; equal ratings make no pair.
      margin: per unit of rating difference.
    Every list has weight 1, as by InstructGPT's factor 1 / C(k, 2); one without any pair has weight 0.
    """
    gap = zero_outside(ratings, real)[:, None] - zero_outside(ratings, real)[None, :]
    pairs = (gap > 0) & real[:, None] & real[None, :]
    total, count = pairwise_loss(
        zero_outside(scores, real)[:, None], zero_outside(scores, real)[None, :], pairs, margin * gap
    )
    return total / jnp.maximum(count, 1), jnp.minimum(count, 1)


def calibration(scores: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(gain, bias) such that gain * score + bias has mean 0 and std 1 over the given responses (Ziegler et al. 2019).

    A pairwise loss leaves the zero of a reward model open. Equal scores keep gain 1.
    """
    deviation = jnp.sqrt(masked_variance(scores, real))
    gain = 1 / jnp.where(deviation > 0, deviation, 1)
    return gain, -gain * masked_mean(scores, real)


def dpo_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    ref_chosen: jax.Array,
    ref_rejected: jax.Array,
    real: jax.Array,
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> Weighted:
    """-(1-ε) log σ(β h) - ε log σ(-β h): (sum, pairs) (Rafailov et al., arXiv 2305.18290, eq. 7).

        h = (log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l))

    Args:
      chosen, rejected: [p] log-probabilities of responses, summed over their tokens (end token included).
      ref_chosen, ref_rejected: the same of the reference; they get no gradient.
      smoothing: ε, the share of labels taken to be flipped (conservative DPO, Mitchell 2023).
    """
    better = dpo_reward(chosen, ref_chosen, beta)
    worse = dpo_reward(rejected, ref_rejected, beta)
    logits = zero_outside(better - worse, real)
    return masked_sum((1 - smoothing) * jax.nn.softplus(-logits) + smoothing * jax.nn.softplus(logits), real)


def dpo_reward(logp: jax.Array, ref_logp: jax.Array, beta: float = 0.1) -> jax.Array:
    """β (log π(y) - log π_ref(y)): the reward for which the policy is optimal, up to a constant per prompt."""
    return beta * (logp - jax.lax.stop_gradient(ref_logp))
