"""Direct preference optimisation (arXiv 2305.18290): the policy learns from preferences without a reward model.

Axes: b pairs, k = 2 responses, t positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwenjax.config import Experiment
from qwenjax.data.batches.preferences import batch_shapes
from qwenjax.model import transformer
from qwenjax.objectives.preference import dpo_loss, dpo_reward
from qwenjax.train import step as steps
from qwenjax.train.backbone import Loaded, Reference
from qwenjax.train.rl.experience import Responses, align_to_actions, log_probs
from qwenjax.train.stages.reward import Preferences


class Dpo(Preferences):
    """A policy trained on pairs; its implied reward is evaluated as a reward model is."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        backbone, preference = self.backbone, experiment.preference
        if preference.responses != 2:
            raise ValueError(f"dpo compares pairs; preference.responses={preference.responses}: leave it at 2")
        self.reference = reference = Reference(experiment, self.compute)

        def response_log_probs(network, trained, frozen, batch, rng):
            """Summed log-probabilities [b k] of the responses, under policy and reference."""
            rngs = backbone.rngs(network, rng)
            policy = sum_log_probs(network, backbone.variables(trained, frozen["policy"]), batch, rngs)
            return policy, jax.lax.stop_gradient(sum_log_probs(reference.network, reference.variables(frozen), batch))

        def loss_fn(trained, frozen, batch, rng):
            policy, ref = response_log_probs(backbone.network, trained, frozen, batch, rng)
            first = jnp.argmax(batch["ratings"], axis=1)[:, None]  # the better one
            better, worse, ref_better, ref_worse = (
                jnp.take_along_axis(x, i, axis=1)[:, 0] for x in (policy, ref) for i in (first, 1 - first)
            )
            real = batch["real"].all(axis=1)
            return dpo_loss(better, worse, ref_better, ref_worse, real, preference.beta, preference.smoothing)

        def rewards(trained, frozen, batch):
            policy, ref = response_log_probs(backbone.eval_network, trained, frozen, batch, None)
            return dpo_reward(policy, ref, preference.beta)

        batch = batch_shapes(experiment.data.batch_size, preference.responses, experiment.data.seq_len)
        self.program = steps.build(experiment, loss_fn, mesh, batch, self._init_params)
        self.rewards = jax.jit(rewards, out_shardings=self.program.shardings.step)

    def _init_params(self, key: jax.Array) -> tuple[Any, Any]:
        trained, base = self.backbone.init_params(key)
        return trained, {"policy": base, "reference": self.reference.copy(trained)}

    def stage_params(self, loaded: Loaded) -> tuple[Any, Any]:
        return loaded.trained, self.reference.frozen(loaded, self.fingerprints)


def sum_log_probs(
    network: transformer.Transformer, variables: dict, batch: dict, rngs: dict | None = None
) -> jax.Array:
    """float32 [b k]: log-probability of each response, its end token included."""
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}
    responses = Responses(flat["tokens"], flat["positions"], align_to_actions(flat["mask"] > 0), flat["end"])
    logp, _ = log_probs(network, variables, responses, rngs)
    return jnp.sum(logp, axis=1).reshape(batch["end"].shape)
