"""What differs between ppo, grpo and reinforce: their advantages and losses. b responses, t positions.

Arrays are [b t] and aligned to actions, as in `experience.py`.
"""

import jax
import jax.numpy as jnp

from qwenjax.objectives import ppo
from qwenjax.objectives.advantages import gae, token_rewards
from qwenjax.objectives.grpo import group_advantages, grpo_loss
from qwenjax.objectives.masked import explained_variance, whiten
from qwenjax.objectives.reinforce import leave_one_out, reinforce_loss
from qwenjax.train.rl.experience import Algorithm


class PPO(Algorithm):
    """Proximal policy optimisation with a value model (report §3.2.2; Schulman et al., arXiv 1707.06347).

    Clipped ratios on whitened GAE; the KL penalty is in every token's reward, the score in that of the last one.
    """

    critic = True

    def advantages(self, scores, outputs, kl_coef):
        rl, mask, values = self.rl, outputs.responses.mask, outputs.values
        rewards = jax.vmap(token_rewards, (0, 0, 0, 0, None))(scores, outputs.logp, outputs.ref_logp, mask, kl_coef)
        raw, returns = jax.vmap(lambda r, v, m: gae(r, v, m, rl.gamma, rl.gae_lambda))(rewards, values, mask)
        # returns belong to the raw advantages
        return whiten(raw, mask), returns, {"explained_variance": explained_variance(values, returns, mask)}

    def policy_loss(self, logp, batch):
        args = logp, batch.old_logp, batch.advantages, batch.responses.mask, self.rl.clip_ratio
        total, weight = ppo.policy_loss(*args)
        return total, {"weight": weight, "clip_fraction": ppo.clip_fraction(*args)[0]}

    def value_loss(self, values, batch):
        mask, clip = batch.responses.mask, self.rl.value_clip
        total, weight = ppo.value_loss(values, batch.old_values, batch.returns, mask, clip)
        return total, {"weight": weight}


class GRPO(Algorithm):
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300): the responses to a prompt are compared.

    Clipped ratios on scores normalised within a prompt's group; the KL penalty is in the loss.
    """

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


class Reinforce(Algorithm):
    """The policy gradient with a leave-one-out baseline (RLOO: Ahmadian et al., arXiv 2402.14740).

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


ALGORITHMS = {"ppo": PPO, "grpo": GRPO, "reinforce": Reinforce}
