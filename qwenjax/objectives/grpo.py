"""GRPO: a response is compared with the others to its prompt, so there is no value model (arXiv 2402.03300, §4.1)."""

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import Weighted
from qwenjax.objectives.ppo import kl_k3, policy_loss


def group_advantages(scores: jax.Array) -> jax.Array:
    """(s_i - mean) / (std + 1e-6) over one prompt's responses [g], std over g - 1 (DeepSeekMath, §4.1.2)."""
    centred = scores - jnp.mean(scores)
    return centred / (jnp.sqrt(jnp.sum(centred**2) / max(scores.size - 1, 1)) + 1e-6)


def grpo_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    ref_logp: jax.Array,
    advantage: jax.Array,
    mask: jax.Array,
    clip_ratio: float = 0.2,
    kl_coef: float = 0.04,
) -> Weighted:
    """PPO's clipped loss with one advantage for all tokens [t], plus β k3 to the reference (DeepSeekMath, eq. 3).

    Returns: (mean over tokens, 1): as in the paper every response has the same weight; (0, 0) for an empty one.
    """
    total, tokens = policy_loss(logp, old_logp, jnp.broadcast_to(advantage, mask.shape), mask, clip_ratio)
    total += kl_coef * jnp.sum(kl_k3(logp, ref_logp, mask))
    return total / jnp.maximum(tokens, 1), jnp.minimum(tokens, 1)
