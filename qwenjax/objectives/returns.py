"""From scores to advantages, for one response: end of text, rewards per token, running mean, GAE.

All arrays are [t] and aligned to actions: entry t belongs to the choice of one token, made from the tokens before it.
`logp[t]` is that token's log-probability and `value[t]` is read at the hidden state it was chosen from, so both come
from position t of the model where tokens[t + 1] was chosen. `mask` is True on the response's tokens, its end token
included. Callers `vmap` over trajectories.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwenjax.objectives.masked import kept, last


def until_stop(tokens: jax.Array, mask: jax.Array, stops: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Ends a response at its first stop token.

    Args:
      tokens, mask: [t]; stop tokens outside the mask (the prompt's) do not count.
      stops: ids; ChatML: <|im_end|> and <|endoftext|>.
    Returns: the mask [t] up to and with the first stop token, and whether there was one. Without one the response was
      cut off by its length: see `unfinished`.
    """
    stop = mask & jnp.isin(tokens, jnp.asarray(stops, tokens.dtype))
    before = jnp.cumsum(stop) - stop  # stop tokens strictly before t
    return mask & (before == 0), jnp.any(stop)


def unfinished(score: jax.Array, ended: jax.Array, instead: float) -> jax.Array:
    """The score, or `instead` for a response that never ended: its end token, which the reward model reads, is missing.

    A fixed low score (Ziegler et al. 2019 use -1) in normalised units: replace after `RunningMean.normalise`, so that
    cut-off responses do not move the mean. The report says nothing about them.
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
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and value targets of one response (Schulman et al., arXiv 1506.02438, eq. 16).

        δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γ λ A_{t+1}        R_t = A_t + V_t

    Args:
      rewards, values, mask: [t]. "Next" is the next unmasked position, so padding, a prompt, or a tool's output within
        the response, is stepped over.
      gamma, lam: ours (InstructGPT's 1, and 0.95); the report does not give them.
      bootstrap: V after the last token. 0: the episode is over, both at an end token and at a response that was cut
        off and got a fixed score for it; the value of the next state if a cut-off response is to count as going on.
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

    start = jnp.float32(0), jnp.asarray(bootstrap, jnp.float32)
    advantages = jax.lax.scan(back, start, (rewards, values, mask), reverse=True)[1]
    return jax.lax.stop_gradient((advantages, advantages + values))


def discounted_returns(rewards: jax.Array, mask: jax.Array, gamma: float = 1.0) -> jax.Array:
    """Reward to go [t]: R_t = r_t + γ R_{t+1}, 0 outside the mask: GAE with λ = 1 and no value model."""
    return gae(rewards, jnp.zeros_like(rewards), mask, gamma, lam=1.0)[0]


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

    def add(self, scores: jax.Array) -> "RunningMean":
        """With a batch of scores, any shape, merged in (Chan et al. 1979): stable, and the batching does not matter."""
        n, mean = scores.size, jnp.mean(scores)
        count, shift = self.count + n, mean - self.mean
        squares = self.squares + jnp.sum((scores - mean) ** 2) + shift**2 * n * (self.count / count)
        return RunningMean(count, self.mean + shift * (n / count), squares)

    def normalise(self, scores: jax.Array, divide: bool = False) -> jax.Array:
        """Scores minus the running mean; with `divide`, over the running deviation (n - 1) too."""
        centred = scores - self.mean
        if not divide:
            return centred
        return centred * jax.lax.rsqrt(self.squares / jnp.maximum(self.count - 1, 1) + 1e-8)
