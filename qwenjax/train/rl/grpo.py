"""Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300): the responses to a prompt are compared."""

import jax
import jax.numpy as jnp

from qwenjax.objectives import ppo
from qwenjax.objectives.grpo import group_advantages, grpo_loss
from qwenjax.train.rl.experience import Algorithm


class GRPO(Algorithm):
    """Clipped ratios on scores normalised within a prompt's group; the KL penalty is in the loss. Arrays are [b t]."""

    kl_in_reward = False

    def advantages(self, scores, outputs, kl_coef):
        mask = outputs.responses.mask
        return self.per_prompt(group_advantages, scores, mask), jnp.zeros(mask.shape, jnp.float32), {}

    def policy_loss(self, logp, batch):
        mask, clip = batch.responses.mask, self.rl.clip_ratio
        advantage = jnp.max(jnp.where(mask, batch.advantages, -jnp.inf), axis=1)  # the same for a response's tokens
        advantage = jnp.where(mask.any(axis=1), advantage, 0)
        loss = jax.vmap(lambda *xs: grpo_loss(*xs, clip_ratio=clip, kl_coef=self.rl.kl_coef))
        total, weight = map(jnp.sum, loss(logp, batch.old_logp, batch.ref_logp, advantage, mask))
        clipped, _ = ppo.clip_fraction(logp, batch.old_logp, batch.advantages, mask, clip)
        return total, {"weight": weight, "clip_fraction": clipped}
