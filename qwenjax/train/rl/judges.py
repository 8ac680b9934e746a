"""Reward models of a run: frozen parameters on the same mesh, and what they make of responses."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwenjax.api.checkpoint_path import detect
from qwenjax.api.reward_model import calibration, identity
from qwenjax.common import storage
from qwenjax.config import Compute, Experiment
from qwenjax.model import reward_head, transformer
from qwenjax.train import step as steps
from qwenjax.train.rl.steps import Responses


class FrozenRewardModel(NamedTuple):
    """A reward model."""

    network: transformer.Transformer

    @classmethod
    def of(cls, path: str, experiment: Experiment, compute: Compute, field: str) -> "FrozenRewardModel":
        """That of a path; of the policy's shape, as the report's is, where there is nothing yet (for a plan).

        Raises:
          ValueError: it was trained on shorter texts than this run makes.
        """
        cfg = experiment.model
        if storage.path(path).exists():
            source = detect(path)
            cfg, length = source.config, source.experiment.data.seq_len if source.experiment else source.config.context
            if length < experiment.data.seq_len:
                raise ValueError(
                    f"data.seq_len={experiment.data.seq_len}, but {field}={path} was trained on texts of {length} "
                    f"tokens at most: its scores of longer ones mean nothing; use --set data.seq_len={length}"
                )
        return cls(transformer.Transformer(reward_head.headless(cfg), compute))

    def random(self, key: jax.Array) -> dict:
        """Parameters of the right shapes, boxed with their logical axes, as `load` gives them."""
        params = transformer.init_params(self.network.cfg, key)
        held = jax.tree.map(lambda x: x.astype(self.network.compute.dtype), params)
        head = reward_head.init_head(self.network.cfg, key)
        return {"backbone": held, "head": head, "gain": jnp.float32(1), "bias": jnp.float32(0)}

    def load(self, path: str, mesh: Mesh, check: Callable[[str, str], None]) -> tuple[dict, str]:
        """The frozen parameters, in the compute dtype and in their places, and the model's fingerprint.

        Args:
          check: told the tokenizer's fingerprint and the path; raises if it is another one.
        """
        source = detect(path)
        places = steps.shardings(mesh, jax.eval_shape(self.random, jax.random.key(0)))
        params, head = source.scorer(places["backbone"])
        check(source.tokenizer().fingerprint, path)
        gain, bias = calibration(source)
        held = jax.tree.map(lambda x: x.astype(self.network.compute.dtype), params)
        rest = {"head": head, "gain": jnp.float32(gain), "bias": jnp.float32(bias)}
        return {"backbone": held} | jax.device_put(rest, {name: places[name] for name in rest}), identity(source)

    def score(self, frozen: dict, read: Responses) -> jax.Array:
        """Calibrated scores [b] at the responses' last tokens; pure."""
        collections = {"params": frozen["backbone"]}
        raw = reward_head.scores(self.network, collections, frozen["head"], read.tokens, read.positions, read.end)
        return frozen["gain"] * raw + frozen["bias"]
