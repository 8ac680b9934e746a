"""Policy gradients without a value model: a response is compared with the others to its prompt. GRPO and REINFORCE.

Scores are [g], the responses to one prompt; token arrays are [t], one response, as in returns.py. Callers `vmap`.
"""

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import Weighted, kept, masked_sum
from qwenjax.objectives.ppo import kl_k3, policy_loss


def group_advantages(scores: jax.Array) -> jax.Array:
    """(s_i - mean) / (std + 1e-6) over one prompt's responses [g] (DeepSeekMath, arXiv 2402.03300, §4.1.2).

    std is over g - 1. Equal scores give 0.
    """
    centred = scores - jnp.mean(scores)
    return centred / (jnp.sqrt(jnp.sum(centred**2) / max(scores.size - 1, 1)) + 1e-6)


def leave_one_out(scores: jax.Array) -> jax.Array:
    """s_i minus the mean of the others [g]: the baseline of RLOO (Ahmadian et al., arXiv 2402.14740), unbiased.

    Raises:
      ValueError: a single response has no others.
    """
    g = scores.size
    if g < 2:
        raise ValueError(f"leave-one-out needs 2 or more responses per prompt, got {g}; use another baseline")
    return (scores - jnp.mean(scores)) * (g / (g - 1))


def grpo_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    ref_logp: jax.Array,
    advantage: jax.Array,
    mask: jax.Array,
    clip: float = 0.2,
    kl_coef: float = 0.04,
) -> Weighted:
    """PPO's clipped loss with one advantage for all tokens, plus β k3 to the reference (DeepSeekMath, eq. 3).

    Args:
      logp, old_logp, ref_logp, mask: [t]. advantage: scalar, of `group_advantages`.
    Returns: (token mean, 1): every response counts alike, whatever its length, as in the paper; an empty one weighs 0.
    """
    total, tokens = policy_loss(logp, old_logp, jnp.broadcast_to(advantage, mask.shape), mask, clip)
    total += kl_coef * jnp.sum(kl_k3(logp, ref_logp, mask))
    return total / jnp.maximum(tokens, 1), jnp.minimum(tokens, 1)


def reinforce_loss(logp: jax.Array, advantages: jax.Array, mask: jax.Array) -> Weighted:
    """-A_t log π(a_t): (sum, tokens); its gradient is the policy gradient (Williams 1992).

    Args:
      advantages: [t] or a scalar: return minus a baseline that the action does not enter (`leave_one_out`, a running
        mean, a value).
    """
    advantages = jax.lax.stop_gradient(jnp.broadcast_to(advantages, mask.shape))
    return masked_sum(-kept(advantages, mask) * kept(logp, mask), mask)
