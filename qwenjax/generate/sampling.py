"""Sampling policies as values: a policy maps logits [b v] and a key to token ids [b], purely."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Greedy:
    """Always the most likely token."""

    def __call__(self, logits: jax.Array, rng: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclass(frozen=True)
class TopP:
    """Nucleus sampling: the fewest most likely tokens whose probabilities reach p, the one that crosses it included.

    The released helper keeps the crossing token too (spec §6.3). Temperature divides the logits first.
    """

    p: float = 0.9
    temperature: float = 1.0

    def __post_init__(self):
        if not 0 < self.p <= 1 or self.temperature <= 0:
            raise ValueError(f"wanted 0 < p <= 1 and temperature > 0, got {self}; use Greedy() for temperature 0")

    def __call__(self, logits: jax.Array, rng: jax.Array) -> jax.Array:
        return jax.random.categorical(rng, self.truncate(logits), axis=-1).astype(jnp.int32)

    def truncate(self, logits: jax.Array) -> jax.Array:
        """Logits with everything outside the nucleus at -inf."""
        logits = logits.astype(jnp.float32) / self.temperature
        if self.p == 1:
            return logits
        order = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(order, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs  # mass of the strictly more likely tokens
        least = jnp.min(jnp.where(before < self.p, order, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits < least, -jnp.inf, logits)
