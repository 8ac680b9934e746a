"""REINFORCE with the other responses to a prompt as the baseline (RLOO): a policy gradient without a value model."""

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import Weighted, masked_sum, zero_outside


def leave_one_out(scores: jax.Array) -> jax.Array:
    """s_i minus the mean of the others [g] (Ahmadian et al., arXiv 2402.14740). ValueError for a single response."""
    g = scores.size
    if g < 2:
        raise ValueError(f"leave-one-out needs 2 or more responses per prompt, got {g}; use another baseline")
    return (scores - jnp.mean(scores)) * (g / (g - 1))


def reinforce_loss(logp: jax.Array, advantages: jax.Array, mask: jax.Array) -> Weighted:
    """-A_t log π(a_t): (sum, tokens); its gradient is the policy gradient (Williams 1992).

    advantages: [t] or a scalar: return minus a baseline that the action does not enter.
    """
    advantages = jax.lax.stop_gradient(jnp.broadcast_to(advantages, mask.shape))
    return masked_sum(-zero_outside(advantages, mask) * zero_outside(logp, mask), mask)
