"""Proximal policy optimisation with a value model (report §3.2.2; Schulman et al., arXiv 1707.06347)."""

import jax

from qwenjax.objectives import ppo
from qwenjax.objectives.advantages import gae, token_rewards
from qwenjax.objectives.masked import explained_variance, whiten
from qwenjax.train.rl.experience import Algorithm


class PPO(Algorithm):
    """Clipped ratios on whitened GAE; the KL penalty is in every token's reward, the score in that of the last one.

    Arrays are [b t], aligned to actions.
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
