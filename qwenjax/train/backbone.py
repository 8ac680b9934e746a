"""The network of a stage: all parameters trained, or adapters on frozen ones (LoRA, QLoRA)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from qwenjax import checkpoint
from qwenjax.api.checkpoint_path import compare, detect
from qwenjax.api.parameters import RewardParams, read_params, read_reward_model
from qwenjax.config import Compute, Experiment, ModelConfig
from qwenjax.model import lora, transformer
from qwenjax.model.reward_head import headless
from qwenjax.objectives.cross_entropy import next_token_loss
from qwenjax.tokenizer import Tokenizer
from qwenjax.train import step as steps

Tree = Any


class Backbone:
    """Which parameters of the model are trained and which are frozen, and how they are read, split and joined.

    Without adapters `trained` is the whole tree of parameters and `frozen` is (). With adapters `trained` is
    {"lora": …, "params": {embed, head}} and `frozen` is {"params": …, "quantised": …}. `cfg` is of `network`, and
    `full_cfg` of the same model with its output embedding. `eval_network` has no dropout.

    Args:
      lm_head: whether there is an output embedding; reward and value models have none.
    """

    def __init__(self, experiment: Experiment, compute: Compute, lm_head: bool = True):
        self.full_cfg, self.lora, self.lm_head = experiment.model, experiment.lora, lm_head
        self.cfg = self.full_cfg if lm_head else headless(self.full_cfg)
        adapters = self.lora if self.lora.rank else None
        self.network = transformer.Transformer(self.cfg, compute, experiment.dropout, lora=adapters)
        self.eval_network = transformer.Transformer(self.cfg, compute, lora=adapters and replace(adapters, dropout=0.0))

    def init_params(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Random parameters, trained and frozen, boxed with their logical axes."""
        params = transformer.init_params(self.cfg, key)
        return self._split(params, key) if self.lora.rank else (params, ())

    def _split(self, params: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        trained, frozen = lora.split(params, self.lora)
        return trained | {"lora": lora.init(self.cfg, self.lora, key)}, frozen

    def variables(self, trained: Tree, frozen: Tree) -> dict:
        """The variables that `Transformer.apply` takes."""
        return lora.variables(trained, frozen) if self.lora.rank else {"params": trained}

    def params(self, trained: Tree, frozen: Tree) -> dict:
        """Full parameters with adapters merged in: for decoding, which reads every weight many times."""
        return lora.merge(self.variables(trained, frozen), self.lora) if self.lora.rank else trained

    def rngs(self, network: transformer.Transformer, rng: jax.Array | None) -> dict:
        """Random streams for `network.apply`; {} if the network has no dropout."""
        return {"dropout": rng} if network.dropout or (network.lora and network.lora.dropout) else {}

    def loss(self, learning: bool = True) -> steps.LossFn:
        """-> (summed nll of `targets` in nats, summed `weights`). `learning`: with dropout."""
        network = self.network if learning else self.eval_network

        def loss_fn(trained, frozen, batch, rng):
            variables = self.variables(trained, frozen)
            rngs = self.rngs(network, rng)
            hidden, _ = network.apply(variables, batch["inputs"], batch["positions"], batch.get("segments"), rngs=rngs)
            weights, head = batch["weights"], transformer.head(variables["params"])
            total = next_token_loss(hidden, head, batch["targets"], weights, network.compute.loss_chunk)
            return total, jnp.sum(weights)

        return loss_fn

    def load(self, path: str | Path, mesh: Mesh, seed: int, say: Callable[[str], None]) -> "Loaded":
        """Parameters of any checkpoint on the mesh; new adapters are random, from `seed`. ValueError for other shapes.

        `say` prints the path and in which fields the two models compute differently.
        """
        source, scorer = detect(path), None
        differences = compare(source, self.full_cfg, path)
        dtype = "float32" if not self.lora.rank or self.lora.base_dtype == "float32" else "bfloat16"
        if source.scores and not self.lm_head:
            scorer = read_reward_model(source, _shardings(mesh, self.cfg))
            params = jax.tree.map(lambda x: x.astype(dtype), scorer.params)
            scorer = scorer._replace(params={})
        else:
            source = replace(source, config=self.full_cfg)
            params = read_params(source, _shardings(mesh, self.full_cfg), dtype)
            if not self.lm_head:
                params.pop("head", None)
        say("\n            ".join((f"starting    from the parameters of {path}", *differences)))
        if not self.lora.rank:
            return Loaded(params, (), source.tokenizer(), scorer)
        key = jax.random.key(seed)
        shardings = steps.parameter_shardings(mesh, jax.eval_shape(self.init_params, key))
        with jax.set_mesh(mesh):
            with_adapters = jax.jit(lambda p: nn.meta.unbox(self._split(p, key)), out_shardings=shardings)
            return Loaded(*with_adapters(params), source.tokenizer(), scorer)


def _shardings(mesh: Mesh, cfg: ModelConfig) -> Tree:
    """Of the parameters of a model."""
    return steps.parameter_shardings(mesh, jax.eval_shape(partial(transformer.init_params, cfg), jax.random.key(0)))


class Loaded(NamedTuple):
    """What `Backbone.load` read."""

    trained: Tree
    frozen: Tree
    tokenizer: Tokenizer | None  # None: there is none in the checkpoint
    scorer: RewardParams | None  # head and calibration of a reward model, without `params`


class Reference:
    """The policy that a run began with, frozen: a copy in the compute dtype. With adapters it is their base.

    The run freezes {"policy": frozen parameters of the policy, "reference": the copy, or () with adapters}.
    """

    def __init__(self, experiment: Experiment, compute: Compute):
        if experiment.lora.modules_to_save:
            raise ValueError(
                "lora.modules_to_save trains embeddings, but the reference needs them as they were: leave it out"
            )
        self.network, self.adapters = transformer.Transformer(experiment.model, compute), experiment.lora.rank > 0

    def copy(self, trained: Tree) -> Tree:
        """The reference of a policy. Pure."""
        return () if self.adapters else jax.tree.map(lambda x: x.astype(self.network.compute.dtype), trained)

    def frozen(self, loaded: Loaded, fingerprints: dict[str, str]) -> dict[str, Tree]:
        """What a run freezes of a policy that was read. Adds the fingerprint of the reference to `fingerprints`."""
        if not self.adapters:
            fingerprints["reference"] = checkpoint.fingerprint(loaded.trained)
        return {"policy": loaded.frozen, "reference": jax.jit(self.copy)(loaded.trained)}

    def variables(self, frozen: dict[str, Tree]) -> dict:
        """The variables that `network.apply` takes."""
        return frozen["policy"] if self.adapters else {"params": frozen["reference"]}
