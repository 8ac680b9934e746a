"""The models of a run: policy, reference, value model and reward models, on one mesh; which of them are frozen.

State.params is the policy, so a checkpoint of the run is one of a language model. State.opt_state is the RL state: the
optimizer of the policy, the value model with its optimizer, the running mean of the scores and the KL coefficient.
State.frozen holds what never changes:

    policy      the base under the policy's adapters; () without adapters
    reference   the policy that the run started from, in the compute dtype; () with adapters: it is their base
    value       the base under the value model's adapters; () without adapters
    reward      a reward model, if a model gives the scores; gold_reward: another one, for evaluation only
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwenjax import checkpoint, optim
from qwenjax.api.checkpoint_path import detect
from qwenjax.api.parameters import read_reward_model
from qwenjax.common import storage
from qwenjax.config import Compute, Experiment
from qwenjax.data.batches import prompts
from qwenjax.model import reward_head, transformer
from qwenjax.objectives.advantages import RunningMean
from qwenjax.train.backbone import Backbone, Reference
from qwenjax.train.rl.experience import Algorithm, Responses
from qwenjax.train.rl.reward_function import RewardFunction, is_function
from qwenjax.train.step import State, StepProgram, TrainState, make_program, optimizer_shardings, parameter_shardings

CheckTokenizer = Callable[[str, str], None]  # (a tokenizer's fingerprint, its path); raises if it is another one
REWARD, GOLD = "reward", "gold_reward"


class FrozenRewardModel:
    """The reward model at `path`, which `field` names, in the compute dtype. ValueError if its texts were shorter.

    If nothing is there (for a plan), one of the policy's shape, as in the report.
    """

    def __init__(self, path: str, experiment: Experiment, compute: Compute, field: str):
        self.path, cfg = path, experiment.model
        if storage.path(path).exists():
            source = detect(path)
            cfg, length = source.config, source.experiment.data.seq_len if source.experiment else source.config.context
            if length < experiment.data.seq_len:
                raise ValueError(
                    f"data.seq_len={experiment.data.seq_len}, but {field}={path} was trained on texts of at most "
                    f"{length} tokens, and its scores of longer texts mean nothing; use --set data.seq_len={length}"
                )
        self.network = transformer.Transformer(reward_head.headless(cfg), compute)

    def init_params(self, key: jax.Array) -> dict:
        """Parameters of the right shapes, boxed with their logical axes, as `load` gives them."""
        params = transformer.init_params(self.network.cfg, key)
        backbone = jax.tree.map(lambda x: x.astype(self.network.compute.dtype), params)
        head = reward_head.init_head(self.network.cfg, key)
        return {"backbone": backbone, "head": head, "gain": jnp.float32(1), "bias": jnp.float32(0)}

    def load(self, mesh: Mesh, check: CheckTokenizer) -> tuple[dict, str]:
        """The parameters with their shardings, in the compute dtype, and the model's fingerprint."""
        source = detect(self.path)
        shardings = parameter_shardings(mesh, jax.eval_shape(self.init_params, jax.random.key(0)))
        saved = read_reward_model(source, shardings["backbone"])
        check(source.tokenizer().fingerprint, self.path)
        backbone = jax.tree.map(lambda x: x.astype(self.network.compute.dtype), saved.params)
        small = {"head": saved.head, "gain": jnp.float32(saved.gain), "bias": jnp.float32(saved.bias)}
        small = jax.device_put(small, {name: shardings[name] for name in small})
        return {"backbone": backbone} | small, saved.fingerprint

    def score(self, frozen: dict, responses: Responses) -> jax.Array:
        """Calibrated scores [b], read at the responses' last tokens; pure."""
        tokens, positions, _, end = responses
        variables = {"params": frozen["backbone"]}
        raw = reward_head.scores(self.network, variables, frozen["head"], tokens, positions, end)
        return frozen["gain"] * raw + frozen["bias"]


class Models:
    """Shapes, shardings and loading of all models of an experiment.

    Attributes:
      functions, scorers: reward functions and reward models by the field of `rl` that names them, REWARD or GOLD.
      value_warmup_steps: first iterations, in which the policy is not updated.
      learning_rate: of the policy, by the iterations since then.
    """

    def __init__(self, experiment: Experiment, compute: Compute, policy: Backbone, algorithm: Algorithm):
        self.experiment, self.compute, self.policy, self.algorithm = experiment, compute, policy, algorithm
        self.reference = Reference(experiment, compute)
        rl, self.functions, self.scorers = experiment.rl, {}, {}
        for name in (REWARD, GOLD):
            path, field = getattr(rl, name), f"rl.{name}"
            if path and is_function(path):
                self.functions[name] = RewardFunction(path, field, rl.reward_timeout)
            elif path:
                self.scorers[name] = FrozenRewardModel(path, experiment, compute, field)
        self.value_warmup_steps = rl.value_warmup_steps if algorithm.critic else 0
        updates, policy_steps = rl.epochs * rl.minibatches, experiment.steps - self.value_warmup_steps
        self.tx = optim.make(experiment.optim, policy_steps, every=updates)
        self.learning_rate = optim.schedule(experiment.optim, policy_steps)
        try:
            self.value_tx = optim.make(rl.value_optim, experiment.steps, every=updates)
        except ValueError as error:
            raise ValueError(f"rl.value_optim: {error}") from None
        self.value_backbone = Backbone(self._value_experiment(), compute, lm_head=False)

    def _value_experiment(self) -> Experiment:
        """The experiment with the shape of the value model, which is that of the model it starts from."""
        cfg, path = self.experiment.model, self.experiment.rl.value_from
        if path and storage.path(path).exists():
            cfg = detect(path).config
        elif REWARD in self.scorers and not path:
            cfg = replace(self.scorers[REWARD].network.cfg, tie_embeddings=cfg.tie_embeddings)
        return replace(self.experiment, model=cfg)

    # ---- shapes ----

    def init_params(self, key: jax.Array) -> tuple[Any, Any, Any]:
        """Random parameters, boxed with their logical axes: of the policy, the value model, and frozen ones."""
        policy, base = self.policy.init_params(key)
        value, frozen = (), {"policy": base, "reference": self.reference.copy(policy)}
        if self.algorithm.critic:
            backbone, frozen["value"] = self.value_backbone.init_params(key)
            head = reward_head.init_head(self.value_backbone.cfg, key)
            value = {"backbone": backbone, "head": head, "bias": jnp.float32(0)}
        return policy, value, frozen | {name: model.init_params(key) for name, model in self.scorers.items()}

    def fresh(self, policy: Any, value: Any) -> State:
        """The state of a run that starts from these parameters, without the frozen ones."""
        rl_state = {
            "policy": self.tx.init(policy),
            "value": TrainState(value, self.value_tx.init(value)) if self.algorithm.critic else (),
            "scores": RunningMean.zero(),
            "kl_coef": jnp.float32(self.experiment.rl.kl_coef),
        }
        return State(jnp.int32(0), policy, rl_state)

    def program(self, mesh: Mesh, max_prompt_length: int, step: Callable) -> StepProgram:
        """Shapes and shardings of the state and of a batch of prompts."""
        size = self.experiment.data.batch_size
        batch = prompts.batch_shapes(size, max_prompt_length) | {"rows": ((size,), np.dtype(np.int32))}

        def opt_shardings(shapes, policy, value):
            opt_state = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), shapes)
            opt_state["policy"] = optimizer_shardings(self.tx, shapes["policy"], policy, mesh)
            if self.algorithm.critic:
                moments = optimizer_shardings(self.value_tx, shapes["value"].opt_state, value, mesh)
                opt_state["value"] = TrainState(value, moments)
            return opt_state

        return make_program(self.experiment, mesh, batch, self.init_params, self.fresh, opt_shardings, step)

    def load_value(
        self, mesh: Mesh, check: CheckTokenizer, frozen: dict, fingerprints: dict[str, str]
    ) -> tuple[Any, Any, str]:
        """The value model's parameters, its frozen part, and the path that it starts from.

        This is `rl.value_from`, or the reward model, whose scores it predicts, or the policy if there is none.
        """
        rl, seed, cfg = self.experiment.rl, self.experiment.seed, self.value_backbone.cfg
        path = rl.value_from or (rl.reward if REWARD in self.scorers else self.experiment.init_from)
        loaded = self.value_backbone.load(path, mesh, seed, lambda text: None)
        if loaded.tokenizer is not None:
            check(loaded.tokenizer.fingerprint, path)
        head, bias = reward_head.init_head(cfg, jax.random.key(seed)).value, 0.0
        if loaded.scorer is not None:  # its first values are the calibrated scores
            head, bias = loaded.scorer.head * loaded.scorer.gain, loaded.scorer.bias
        base = loaded.frozen
        if base:
            fingerprints["value"] = checkpoint.fingerprint(base)
            if REWARD in self.scorers and path == rl.reward and self.experiment.lora.base_dtype == self.compute.dtype:
                base = base | {"params": frozen[REWARD]["backbone"]}  # equal weights are kept on the device once
        return {"backbone": loaded.trained, "head": head, "bias": jnp.float32(bias)}, base, path
