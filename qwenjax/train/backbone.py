"""The network of a stage of alignment: all parameters trained, or adapters on frozen ones (LoRA, QLoRA)."""

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
from qwenjax.api.checkpoint_path import compare, detect, start_from
from qwenjax.config import Compute, Experiment, ModelConfig
from qwenjax.model import lora, transformer
from qwenjax.model.reward_head import headless
from qwenjax.objectives.cross_entropy import next_token_loss
from qwenjax.tokenizer import Tokenizer
from qwenjax.train import step as steps

Tree = Any


class Backbone:
    """Which parameters of the model are trained and which frozen, and how the two are read, split and joined.

    `trained` is {name: parameter} of the whole model, or with adapters {"lora": …, "params": {embed, head}}; then
    `frozen` is {"params": …, "quantised": …}. Without adapters `frozen` is ().

    Args:
      head: whether there is an output embedding; reward and value models have none.
    """

    def __init__(self, experiment: Experiment, compute: Compute, head: bool = True):
        self.whole, self.lora, self.head = experiment.model, experiment.lora, head
        self.cfg = self.whole if head else headless(self.whole)
        adapters = self.lora if self.lora.rank else None
        still = replace(self.lora, dropout=0.0) if adapters else None
        self.network = transformer.Transformer(self.cfg, compute, experiment.dropout, lora=adapters)
        self.plain = transformer.Transformer(self.cfg, compute, lora=still)  # nothing drops

    def random(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Random parameters, trained and frozen, boxed with their logical axes."""
        params = transformer.init_params(self.cfg, key)
        return self._split(params, key) if self.lora.rank else (params, ())

    def _split(self, params: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        trained, frozen = lora.split(params, self.lora)
        return trained | {"lora": lora.init(self.cfg, self.lora, key)}, frozen

    def variables(self, trained: Tree, frozen: Tree) -> dict:
        """What `Transformer.apply` takes."""
        return lora.variables(trained, frozen) if self.lora.rank else {"params": trained}

    def params(self, trained: Tree, frozen: Tree) -> dict:
        """Full parameters, adapters merged in: for decoding, which reads every weight many times."""
        return lora.merge(self.variables(trained, frozen), self.lora) if self.lora.rank else trained

    def rngs(self, network: transformer.Transformer, rng: jax.Array | None) -> dict:
        """Random streams of a call; none where nothing drops."""
        return {"dropout": rng} if network.dropout or (network.lora and network.lora.dropout) else {}

    def loss(self, learning: bool = True) -> steps.LossFn:
        """-> (summed nll in nats of `targets`, their summed `weights`), with dropout while learning."""
        network = self.network if learning else self.plain

        def loss_fn(trained, frozen, batch, rng):
            variables = self.variables(trained, frozen)
            rngs = self.rngs(network, rng)
            hidden, _ = network.apply(variables, batch["inputs"], batch["positions"], batch.get("segments"), rngs=rngs)
            weights, head = batch["weights"], transformer.head(variables["params"])
            total = next_token_loss(hidden, head, batch["targets"], weights, network.compute.loss_chunk)
            return total, jnp.sum(weights)

        return loss_fn

    def load(self, path: str | Path, mesh: Mesh, seed: int, say: Callable[[str], None]) -> "Loaded":
        """What any checkpoint holds, in its places.

        Raises:
          ValueError: the checkpoint's parameters have other shapes than the model's.
        """
        key, head = jax.random.key(seed), None
        whole = "float32" if not self.lora.rank or self.lora.base_dtype == "float32" else "bfloat16"
        source = detect(path)
        scores = source.experiment is not None and source.experiment.task == "reward"
        if scores and not self.head:
            params, head = source.scorer(self._places(mesh, self.cfg))
            head = Scorer(head, *source.meta["calibration"])
            params = jax.tree.map(lambda x: x.astype(whole), params)
            tokenizer, differing = source.tokenizer(), compare(source, self.whole, path)
        else:
            params, tokenizer, differing = start_from(path, self.whole, self._places(mesh, self.whole), whole)
            if not self.head:
                params.pop("head", None)
        say(f"starting    from the parameters of {path}")
        for difference in differing:
            say(f"            {difference}")
        if not self.lora.rank:
            return Loaded(params, (), tokenizer, head)
        where = steps.shardings(mesh, jax.eval_shape(self.random, key))
        with jax.set_mesh(mesh):
            parts = jax.jit(lambda p: nn.meta.unbox(self._split(p, key)), out_shardings=where)(params)
        return Loaded(*parts, tokenizer, head)

    def _places(self, mesh: Mesh, cfg: ModelConfig) -> Tree:
        return steps.shardings(mesh, jax.eval_shape(partial(transformer.init_params, cfg), jax.random.key(0)))


class Reference:
    """The policy that a run began with, frozen: a copy in the compute dtype; with adapters it is their base.

    A run that has one freezes {"policy": what is frozen of the policy, "reference": the copy, or ()}.

    Raises:
      ValueError: embeddings are to be trained.
    """

    def __init__(self, experiment: Experiment, compute: Compute):
        if experiment.lora.modules_to_save:
            raise ValueError(
                "lora.modules_to_save trains embeddings, but the reference needs them as they were: leave it out"
            )
        self.network, self.adapters = transformer.Transformer(experiment.model, compute), experiment.lora.rank > 0

    def copy(self, trained: Tree) -> Tree:
        """The reference of a policy; pure."""
        return () if self.adapters else jax.tree.map(lambda x: x.astype(self.network.compute.dtype), trained)

    def frozen(self, found: "Loaded", fingerprints: dict[str, str]) -> dict[str, Tree]:
        """What a run freezes of a policy that was read; the copy's fingerprint goes to the others."""
        if not self.adapters:
            fingerprints["reference"] = checkpoint.fingerprint(found.trained)
        return {"policy": found.frozen, "reference": jax.jit(self.copy)(found.trained)}

    def variables(self, frozen: dict[str, Tree]) -> dict:
        """What `network.apply` takes."""
        return frozen["policy"] if self.adapters else {"params": frozen["reference"]}


class Loaded(NamedTuple):
    """What a checkpoint gave."""

    trained: Tree
    frozen: Tree
    tokenizer: Tokenizer | None  # None: none lay there
    scorer: "Scorer | None"  # of a reward model


class Scorer(NamedTuple):
    """What makes a score of a reward model's hidden state, and the calibration stored with it."""

    head: jax.Array  # [d]
    gain: float
    bias: float
