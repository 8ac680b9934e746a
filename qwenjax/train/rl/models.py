"""The models of a run: policy, reference, value model and reward models, on one mesh; which of them are frozen.

State.params is the policy, so that a checkpoint of the run is one of a language model. The value model, the optimizers,
the running mean of the scores and the KL coefficient are State.opt_state; what never changes is State.frozen:

    policy      the base under the policy's adapters; () without them
    reference   the policy that the run began with, in the compute dtype; () with adapters: it is their base
    value       the base under the value model's adapters; () without them
    reward      a reward model, if a model gives the scores; gold: another one that only looks on
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwenjax import checkpoint, optim
from qwenjax.api.checkpoint_path import detect
from qwenjax.common import storage
from qwenjax.config import Compute, Experiment
from qwenjax.model import reward_head
from qwenjax.objectives.advantages import RunningMean
from qwenjax.train import step as steps
from qwenjax.train.backbone import Backbone, Reference
from qwenjax.train.rl.function import RewardFunction, is_function
from qwenjax.train.rl.judges import FrozenRewardModel
from qwenjax.train.rl.steps import TrainState
from qwenjax.train.step import State, StepProgram

Check = Callable[[str, str], None]  # (a tokenizer's fingerprint, whose) raises if it is another one
REWARD, GOLD = "reward", "gold_reward"


class Models:
    """Shapes, places and loading of all models of an experiment.

    Raises:
      ValueError: a reward model was trained on shorter texts than this run makes, or embeddings are to be trained.
    """

    def __init__(self, experiment: Experiment, compute: Compute, policy: Backbone):
        self.experiment, self.compute, self.policy = experiment, compute, policy
        self.reference = Reference(experiment, compute)
        rl, self.adapters = experiment.rl, experiment.lora.rank > 0
        named = {name: path for name, path in ((REWARD, rl.reward), (GOLD, rl.gold_reward)) if path}
        self.functions = {
            name: RewardFunction(path, f"rl.{name}", rl.reward_timeout)
            for name, path in named.items()
            if is_function(path)
        }
        self.scorers = {
            name: FrozenRewardModel.of(path, experiment, compute, f"rl.{name}")
            for name, path in named.items()
            if name not in self.functions
        }
        updates = rl.epochs * rl.minibatches
        self.critic = experiment.task == "ppo"
        self.value_warmup_steps = (
            rl.value_warmup_steps if self.critic else 0
        )  # iterations in which the value model alone learns
        learning = experiment.steps - self.value_warmup_steps
        self.tx = optim.make(experiment.optim, learning, every=updates)
        try:
            self.value_tx = optim.make(rl.value_optim, experiment.steps, every=updates)
        except ValueError as error:
            raise ValueError(f"rl.value_optim: {error}") from None
        self.rate = optim.schedule(experiment.optim, learning)
        self.value_backbone = Backbone(self._value_experiment(), compute, head=False)

    def _value_experiment(self) -> Experiment:
        """Shape of the value model: that of the model it starts from."""
        cfg, path = self.experiment.model, self.experiment.rl.value_from
        if path and storage.path(path).exists():
            cfg = detect(path).config
        elif REWARD in self.scorers and not path:
            cfg = replace(self.scorers[REWARD].network.cfg, tie_embeddings=cfg.tie_embeddings)
        return replace(self.experiment, model=cfg)

    # ---- shapes ----

    def random(self, key: jax.Array) -> tuple[Any, Any, Any]:
        """Random parameters, boxed with their logical axes: policy's, value model's, frozen ones."""
        policy, base = self.policy.random(key)
        value, frozen = (), {"policy": base, "reference": self.reference.copy(policy)}
        if self.critic:
            trained, frozen["value"] = self.value_backbone.random(key)
            value = {
                "backbone": trained,
                "head": reward_head.init_head(self.value_backbone.cfg, key),
                "bias": jnp.float32(0),
            }
        return policy, value, frozen | {name: judge.random(key) for name, judge in self.scorers.items()}

    def fresh(self, policy: Any, value: Any) -> State:
        """The state of a run that begins with these parameters, without the frozen ones."""
        rest = {
            "policy": self.tx.init(policy),
            "value": TrainState(value, self.value_tx.init(value)) if self.critic else (),
            "scores": RunningMean.zero(),
            "kl_coef": jnp.float32(self.experiment.rl.kl_coef),
        }
        return State(jnp.int32(0), policy, rest)

    def program(self, mesh: Mesh, prompt: int, step: Callable) -> StepProgram:
        """Shapes and places of state and batch. prompt: tokens of a prompt."""
        experiment = self.experiment
        steps.check_batch(experiment, mesh)
        over, parts = mesh.shape["data"] * mesh.shape["fsdp"], experiment.rl.minibatches * experiment.accumulate
        for rows, what in (
            (experiment.data.batch_size // parts, f"data.batch_size={experiment.data.batch_size} in {parts} parts"),
            (experiment.rl.ptx_batch // experiment.accumulate, f"rl.ptx_batch={experiment.rl.ptx_batch}"),
        ):
            if rows % over:
                raise ValueError(
                    f"{what} gives {rows} rows to an update, which do not divide over {over} devices (data x fsdp); "
                    f"use a multiple of {over} rows, fewer rl.minibatches, or --set mesh.tensor=…"
                )

        def init() -> State:
            policy, value, frozen = nn.meta.unbox(self.random(jax.random.key(experiment.seed)))
            return self.fresh(policy, value)._replace(frozen=frozen)

        policy, value, frozen = steps.shardings(mesh, jax.eval_shape(self.random, jax.random.key(0)))
        here = NamedSharding(mesh, PartitionSpec())
        shapes = jax.eval_shape(init)
        rest = jax.tree.map(lambda x: here, shapes.opt_state)
        rest["policy"] = steps.optimizer_places(self.tx, shapes.opt_state["policy"], policy, here)
        if self.critic:
            moments = shapes.opt_state["value"].opt_state
            rest["value"] = TrainState(value, steps.optimizer_places(self.value_tx, moments, value, here))
        places = State(here, policy, rest, frozen)
        b = experiment.data.batch_size
        batch = {
            "prompts": jax.ShapeDtypeStruct((b, prompt), np.int32),
            "lengths": jax.ShapeDtypeStruct((b,), np.int32),
            "rows": jax.ShapeDtypeStruct((b,), np.int32),
        }
        return StepProgram(
            mesh=mesh,
            shapes=shapes,
            shardings=places,
            batch=steps.placed_batch(batch, experiment.data.seq_len, mesh),
            init=steps.in_mesh(mesh, jax.jit(init, out_shardings=places)),
            start=steps.in_mesh(
                mesh, jax.jit(self.fresh, in_shardings=(policy, value), out_shardings=places._replace(frozen=()))
            ),
            step=step,
        )

    # ---- parameters ----

    def reference_params(self, frozen: dict) -> dict:
        """The reference's, in full, for decoding."""
        if not self.adapters:
            return frozen["reference"]
        return self.policy.params({"params": {}}, frozen["policy"])

    def load_scorers(self, mesh: Mesh, check: Check, fingerprints: dict[str, str]) -> dict[str, Any]:
        """The reward models, frozen."""
        loaded = {}
        for name, judge in self.scorers.items():
            path = getattr(self.experiment.rl, name)
            loaded[name], fingerprints[name] = judge.load(path, mesh, check)
        return loaded

    def load_value(self, mesh: Mesh, check: Check, frozen: dict, fingerprints: dict[str, str]) -> tuple[Any, Any, str]:
        """Value model, its frozen part and where it came from: the reward model, whose scores it is to foretell.

        `rl.value_from` names another; where a function gives the scores it is the policy's own start.
        """
        rl = self.experiment.rl
        path = rl.value_from or (rl.reward if REWARD in self.scorers else self.experiment.init_from)
        found = self.value_backbone.load(path, mesh, self.experiment.seed, lambda text: None)
        if found.tokenizer is not None:
            check(found.tokenizer.fingerprint, path)
        head, bias = reward_head.init_head(self.value_backbone.cfg, jax.random.key(self.experiment.seed)).value, 0.0
        if found.scorer is not None:  # it begins by foretelling the calibrated score
            head, bias = found.scorer.head * found.scorer.gain, found.scorer.bias
        base = found.frozen
        if self.adapters:
            fingerprints["value"] = checkpoint.fingerprint(base)
            if REWARD in self.scorers and path == rl.reward and self.experiment.lora.base_dtype == self.compute.dtype:
                base = base | {"params": frozen[REWARD]["backbone"]}  # the same weights are held once
        return {"backbone": found.trained, "head": head, "bias": jnp.float32(bias)}, base, path
