"""Direct preference optimisation (arXiv 2305.18290): the policy learns from preferences without a reward model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwenjax.config import Experiment
from qwenjax.model import transformer
from qwenjax.objectives.preference import dpo_loss, dpo_reward
from qwenjax.train import step as steps
from qwenjax.train.backbone import Loaded, Reference
from qwenjax.train.rl.steps import Responses, actions, log_probs
from qwenjax.train.stages.reward import Lists, batch_shapes


class Dpo(Lists):
    """A policy trained on pairs; its implied reward is judged as a reward model is."""

    headline = "eval_accuracy"

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        if experiment.preference.responses != 2:
            raise ValueError(
                f"dpo compares pairs; preference.responses={experiment.preference.responses}: leave it at 2"
            )
        backbone, how = self.backbone, experiment.preference
        self.reference = reference = Reference(experiment, self.compute)

        def both(network, trained, frozen, batch, rng):
            """Summed log-probabilities [b k] of the responses, under policy and reference."""
            rngs = backbone.rngs(network, rng)
            policy = summed(network, backbone.variables(trained, frozen["policy"]), batch, rngs)
            return policy, jax.lax.stop_gradient(summed(reference.network, reference.variables(frozen), batch))

        def loss_fn(trained, frozen, batch, rng):
            policy, ref = both(backbone.network, trained, frozen, batch, rng)
            first = jnp.argmax(batch["ratings"], axis=1)[:, None]  # the better one
            better, worse, ref_better, ref_worse = (
                jnp.take_along_axis(x, i, axis=1)[:, 0] for x in (policy, ref) for i in (first, 1 - first)
            )
            real = batch["real"].all(axis=1)
            return dpo_loss(better, worse, ref_better, ref_worse, real, how.beta, how.smoothing)

        def rewards(trained, frozen, batch):
            return dpo_reward(*both(backbone.plain, trained, frozen, batch, None), how.beta)

        self.program = steps.build(experiment, loss_fn, mesh, batch_shapes(experiment), self._parts)
        self.rewards = jax.jit(rewards, out_shardings=self.program.shardings.step)  # whole in every process

    def _parts(self, key: jax.Array) -> tuple[Any, Any]:
        trained, base = self.backbone.random(key)
        return trained, {"policy": base, "reference": self.reference.copy(trained)}

    def joined(self, found: Loaded) -> tuple[Any, Any]:
        return found.trained, self.reference.frozen(found, self.fingerprints)

    def frozen(self, say: Callable[[str], None], meta: dict) -> Any:
        if not self.experiment.init_from:
            return self.program.init().frozen
        found = self.load(lambda text: None)[1]
        self.same_models(meta)
        return found

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [("talk to it", f"python -m qwenjax.chat --model={workdir}")]


def summed(network: transformer.Transformer, collections: dict, batch: dict, rngs: dict | None = None) -> jax.Array:
    """float32 [b k]: log-probability of each response, its end token included."""
    rows = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}
    read = Responses(rows["tokens"], rows["positions"], actions(rows["mask"] > 0), rows["end"])
    logp, _ = log_probs(network, collections, read, rngs)
    return jnp.sum(logp, axis=1).reshape(batch["end"].shape)
