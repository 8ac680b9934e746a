"""REINFORCE with a leave-one-out baseline (RLOO: Ahmadian et al., arXiv 2402.14740)."""

import jax.numpy as jnp

from qwenjax.objectives import ppo
from qwenjax.objectives.reinforce import leave_one_out, reinforce_loss
from qwenjax.train.rl.experience import Algorithm


class Reinforce(Algorithm):
    """The policy gradient with a leave-one-out baseline. Arrays are [b t].

    Nothing is clipped: one update for each iteration keeps the ratio at 1.
    """

    def advantages(self, scores, outputs, kl_coef):
        mask = outputs.responses.mask
        kl = jnp.sum(ppo.kl_k1(outputs.logp, outputs.ref_logp, mask), axis=1)  # [b], nats per response
        advantages = self.per_prompt(leave_one_out, scores - kl_coef * kl, mask)
        return advantages, jnp.zeros(mask.shape, jnp.float32), {}

    def policy_loss(self, logp, batch):
        total, weight = reinforce_loss(logp, batch.advantages, batch.responses.mask)
        return total, {"weight": weight}
