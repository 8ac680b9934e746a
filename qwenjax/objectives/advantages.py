"""From scores to advantages: running mean, rewards per token and GAE of PPO (report §3.2.2).

  score of a response -> RunningMean.normalise -> token_rewards, with the KL penalty -> gae

Arrays are [t], one entry per action, of one response; callers `vmap`. `logp[t]` is the log-probability of
tokens[t + 1], `values[t]` the value at the hidden state that token was chosen from. `mask` is True on the response's
tokens, its end token included.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import is_last, masked_mean, zero_outside


def token_rewards(
    score: jax.Array, logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, kl_coef: jax.Array | float = 0.04
) -> jax.Array:
    """Rewards [t]: r_t = -β (log π(a_t) - log π_ref(a_t)), plus the score at the last token of the response.

    InstructGPT, arXiv 2203.02155, eq. 2. β = 0.04: report §3.2.2. The result has no gradient.
    """
    penalty = -kl_coef * zero_outside(logp - ref_logp, mask)
    return jax.lax.stop_gradient(penalty + jnp.where(is_last(mask), score, 0))


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and value targets of one response (Schulman et al., arXiv 1506.02438, eq. 16).

        δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γ λ A_{t+1}        R_t = A_t + V_t

    V after the last token is 0, also where a response was cut off. t + 1 is the next position inside the mask, so a
    tool's output within the response is skipped. The report gives no γ and λ: 1 is InstructGPT's, 0.95 is ours.

    Returns: A and R, [t], 0 outside the mask, without gradients. R is of the raw advantages: whiten these afterwards.
    """
    rewards, values = zero_outside(rewards, mask), zero_outside(values, mask)

    def back(carry, x):
        later, next_value = carry
        reward, value, real = x
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * later
        carry = jnp.where(real, advantage, later), jnp.where(real, value, next_value)
        return carry, jnp.where(real, advantage, 0)

    start = jnp.float32(0), jnp.float32(0)
    advantages = jax.lax.scan(back, start, (rewards, values, mask), reverse=True)[1]
    return jax.lax.stop_gradient((advantages, advantages + values))


class RunningMean(NamedTuple):
    """Mean and variance of all scores so far, as a value: `add` returns a new one. It is part of the checkpoint.

    Report §3.2.2: rewards are normalised "based on the running mean". Our choices: every score of the run has the same
    weight; a batch is added before it is normalised; scores are raw, without the KL penalty.
    """

    count: jax.Array  # int32
    mean: jax.Array  # float32
    squares: jax.Array  # float32, summed squared deviations from the mean

    @classmethod
    def zero(cls) -> "RunningMean":
        """Before the first score."""
        return cls(jnp.int32(0), jnp.float32(0), jnp.float32(0))

    def add(self, scores: jax.Array, real: jax.Array) -> "RunningMean":
        """With the `real` ones of a batch of scores, any shape, added (Chan et al. 1979)."""
        n, mean = jnp.sum(real), masked_mean(scores, real)
        count, shift = self.count + n, mean - self.mean
        share = n / jnp.maximum(count, 1)
        squares = self.squares + jnp.sum(zero_outside(scores - mean, real) ** 2) + shift**2 * self.count * share
        return RunningMean(count.astype(jnp.int32), self.mean + shift * share, squares)

    def normalise(self, scores: jax.Array, normalize_std: bool = False) -> jax.Array:
        """Scores minus the running mean; with `normalize_std` also over the running standard deviation (n - 1)."""
        centred = scores - self.mean
        if not normalize_std:
            return centred
        return centred * jax.lax.rsqrt(self.squares / jnp.maximum(self.count - 1, 1) + 1e-8)
