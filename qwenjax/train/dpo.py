"""Direct preference optimisation (arXiv 2305.18290): the policy learns from preferences without a reward model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwenjax import checkpoint
from qwenjax.config import Experiment
from qwenjax.model import transformer
from qwenjax.objectives.log_probs import token_log_probs
from qwenjax.objectives.masked import kept
from qwenjax.objectives.preference import dpo_loss, dpo_reward
from qwenjax.train import step as steps
from qwenjax.train.backbone import Loaded
from qwenjax.train.reward import Lists, batch_shapes


class Dpo(Lists):
    """A policy trained on pairs; its implied reward is judged as a reward model is.

    The frozen reference is the policy that the run began with: a copy in the compute dtype, or, with adapters, the
    base that they stand on.
    """

    headline = "eval_accuracy"

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        if experiment.lora.whole:
            raise ValueError("lora.whole trains embeddings, but the reference needs them as they were: leave it out")
        if experiment.preference.responses != 2:
            raise ValueError(
                f"dpo compares pairs; preference.responses={experiment.preference.responses}: leave it at 2"
            )
        backbone, how = self.backbone, experiment.preference
        reference = transformer.Transformer(experiment.model, self.compute)

        def both(network, trained, frozen, batch, rng):
            """Summed log-probabilities [b k] of the responses, under policy and reference."""
            rngs = backbone.rngs(network, rng)
            policy = summed(network, backbone.variables(trained, frozen["policy"]), batch, rngs)
            base = frozen["policy"] if experiment.lora.rank else {"params": frozen["reference"]}
            return policy, jax.lax.stop_gradient(summed(reference, base, batch, {}))

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
        return trained, {"policy": base, "reference": self._copy(trained)}

    def _copy(self, trained: Any) -> Any:
        if self.experiment.lora.rank:
            return ()
        return jax.tree.map(lambda x: x.astype(self.compute.dtype), trained)

    def joined(self, found: Loaded) -> tuple[Any, Any]:
        if not self.experiment.lora.rank:
            self.fingerprints["reference"] = checkpoint.fingerprint(found.trained)
        return found.trained, {"policy": found.frozen, "reference": jax.jit(self._copy)(found.trained)}

    def frozen(self, say: Callable[[str], None], meta: dict) -> Any:
        if not self.experiment.init_from:
            return self.program.init().frozen
        found = self.load(lambda text: None)[1]
        self.same_models(meta)
        return found

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [("talk to it", f"python -m qwenjax.chat --model={workdir}")]


def summed(network: transformer.Transformer, collections: dict, batch: dict, rngs: dict) -> jax.Array:
    """float32 [b k]: log-probability of each response, its end token included."""
    length = batch["tokens"].shape[-1]
    tokens, positions, mask = (batch[name].reshape(-1, length) for name in ("tokens", "positions", "mask"))
    hidden, _ = network.apply(collections, tokens, positions, rngs=rngs)
    roll = partial(jnp.roll, shift=-1, axis=1)
    head, chunk = transformer.head(collections["params"]), network.compute.loss_tokens
    logp, _ = token_log_probs(hidden, head, roll(tokens), chunk)
    asked = (roll(mask) > 0) & (jnp.arange(length) < length - 1)
    return jnp.sum(kept(logp, asked), axis=1).reshape(batch["end"].shape)
