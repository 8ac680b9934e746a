"""From scores to advantages, for one response: rewards per token, running mean, GAE.

All arrays are [t] and aligned to actions: entry t belongs to the choice of one token, made from the tokens before it.
`logp[t]` is that token's log-probability and `value[t]` is read at the hidden state it was chosen from, so both come
from position t of the model where tokens[t + 1] was chosen. `mask` is True on the response's tokens, its end token
included. Callers `vmap` over trajectories.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import kept, last, masked_mean


def unfinished(score: jax.Array, ended: jax.Array, instead: float) -> jax.Array:
    """The score, or `instead` for a response that never ended: its end token, which the reward model reads, is missing.

    A fixed low score (Ziegler et al. 2019 use -1) in normalised units: replace after `RunningMean.normalise`, and leave
    cut-off responses out of `RunningMean.add`. The report says nothing about them.
    """
    return jnp.where(ended, score, instead)


def token_rewards(
    score: jax.Array, logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, kl_coef: jax.Array | float = 0.04
) -> jax.Array:
    """Rewards [t]: r_t = -β (log π(a_t) - log π_ref(a_t)), plus the score once, at the last token of the response.

    Their sum is the score minus β times the k1 estimate of the sequence's KL to the reference (Ziegler et al. 2019,
    eq. 2; InstructGPT, arXiv 2203.02155, eq. 2). β = 0.04: report §3.2.2. No gradient passes.
    """
    penalty = -kl_coef * kept(logp - ref_logp, mask)
    return jax.lax.stop_gradient(penalty + jnp.where(last(mask), score, 0))


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float = 1.0, lam: float = 0.95
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and value targets of one response (Schulman et al., arXiv 1506.02438, eq. 16).

        δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γ λ A_{t+1}        R_t = A_t + V_t

    V after the last token is 0: the episode is over, both at an end token and at a response that was cut off and got a
    fixed score for it.

    Args:
      rewards, values, mask: [t]. "Next" is the next unmasked position, so padding, a prompt, or a tool's output within
        the response, is stepped over.
      gamma, lam: ours (InstructGPT's 1, and 0.95); the report does not give them.
    Returns: advantages and returns, [t], 0 outside the mask. The returns belong to the raw advantages: whiten after.
      No gradient passes.
    """
    rewards, values = kept(rewards, mask), kept(values, mask)

    def back(carry, x):
        later, next_value = carry
        reward, value, real = x
        advantage = reward + gamma * next_value - value + gamma * lam * later
        carry = jnp.where(real, advantage, later), jnp.where(real, value, next_value)
        return carry, jnp.where(real, advantage, 0)

    start = jnp.float32(0), jnp.float32(0)
    advantages = jax.lax.scan(back, start, (rewards, values, mask), reverse=True)[1]
    return jax.lax.stop_gradient((advantages, advantages + values))


class RunningMean(NamedTuple):
    """Mean and spread of all scores seen so far; a value that goes in and comes out, and into the checkpoint.

    Report §3.2.2: rewards are normalised "based on the running mean". Ours, as it says no more: the mean weighs every
    score of the run alike, a batch enters before it is normalised (so the first one is centred too), scores are taken
    raw, before the KL penalty. Dividing by the running deviation is an option the report does not mention.
    """

    count: jax.Array  # int32
    mean: jax.Array  # float32
    squares: jax.Array  # float32, summed squared deviations from the mean

    @classmethod
    def zero(cls) -> "RunningMean":
        """Before the first score."""
        return cls(jnp.int32(0), jnp.float32(0), jnp.float32(0))

    def add(self, scores: jax.Array, real: jax.Array) -> "RunningMean":
        """With a batch of scores, any shape, merged in (Chan et al. 1979): stable, and the batching does not matter.

        Args:
          real: bool, the shape of scores, which of them count; the others may be anything. A response that was cut
            off has no score of its own (`unfinished`).
        """
        n, mean = jnp.sum(real), masked_mean(scores, real)
        count, shift = self.count + n, mean - self.mean
        share = n / jnp.maximum(count, 1)
        squares = self.squares + jnp.sum(kept(scores - mean, real) ** 2) + shift**2 * self.count * share
        return RunningMean(count.astype(jnp.int32), self.mean + shift * share, squares)

    def normalise(self, scores: jax.Array, divide: bool = False) -> jax.Array:
        """Scores minus the running mean; with `divide`, over the running deviation (n - 1) too."""
        centred = scores - self.mean
        if not divide:
            return centred
        return centred * jax.lax.rsqrt(self.squares / jnp.maximum(self.count - 1, 1) + 1e-8)
