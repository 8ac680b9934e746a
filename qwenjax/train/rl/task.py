"""Reinforcement learning from scores (report §3.2.2): ppo, grpo and reinforce.

A step of the run is an iteration: sample responses, score them, compute advantages, and update the policy and the
value model on minibatches (`programs.py`). Random draws depend on the seed and the iteration only, so a killed run
ends bit-identical.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax.config import Experiment
from qwenjax.data.batches import text
from qwenjax.data.batches.prompts import PromptMixture
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.shards import prepare as preparation
from qwenjax.train.backbone import Loaded
from qwenjax.train.rl import report
from qwenjax.train.rl.evaluation import ResponseEvaluation, decode, gather
from qwenjax.train.rl.experience import Experience
from qwenjax.train.rl.grpo import GRPO
from qwenjax.train.rl.models import REWARD, Models
from qwenjax.train.rl.ppo import PPO
from qwenjax.train.rl.programs import TokenIds, jit_programs, lowered
from qwenjax.train.rl.reinforce import Reinforce
from qwenjax.train.step import State, TrainState, sharded_batch
from qwenjax.train.task import Step, Task

ALGORITHMS = {"ppo": PPO, "grpo": GRPO, "reinforce": Reinforce}


class RLTask(Task):
    """A policy that learns from the scores of its own responses."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        self.rl = rl = experiment.rl
        self.updates = rl.epochs * rl.minibatches  # of an iteration
        self.algorithm = ALGORITHMS[experiment.task](rl)
        self.models = Models(experiment, self.compute, self.backbone, self.algorithm)
        self.max_prompt_length = experiment.data.seq_len - rl.max_new_tokens
        self.program = self.models.program(mesh, self.max_prompt_length, self._iterate)
        # pretraining data for one update: rows, and shapes with shardings
        data = experiment.data
        self.text_rows = rl.ptx_batch or data.batch_size // rl.minibatches
        shapes = text.batch_shapes(self.text_rows, data.seq_len, data.document_mask)
        self.text_batch = sharded_batch(shapes, data.seq_len, mesh)
        self.nll = jax.jit(self.backbone.loss(learning=False))
        # until `prepare` has a tokenizer, and for a plan, which has none, any ids do
        self.programs = jit_programs(self.models, self.program, TokenIds((0,), 0, experiment.model.vocab, 0))

    # ---- data ----

    def prepare(self, root: Path) -> list[str]:
        if not self.rl.reward:
            advice = "--set rl.reward=PATH of a reward model, or FILE.py:FUNCTION"
            raise ValueError(f"{self.experiment.name} learns from scores and has none: {advice}")
        self.tokenizer = self.load_tokenizer()
        self.stops = tuple(sorted({*(ids[0] for ids in self.tokenizer.turn_stops()), self.tokenizer.eot}))
        for function in self.models.functions.values():
            function.start()
        lines = self._prepare_prompts(root) + self._prepare_text(root)
        ids = TokenIds(self.stops, self.tokenizer.turn_end, self.tokenizer.size, self.tokenizer.eot)
        self.programs = jit_programs(self.models, self.program, ids)
        return lines

    def _prepare_prompts(self, root: Path) -> list[str]:
        chat, seed = self.experiment.chat, self.experiment.seed
        # prompts that leave too few tokens for a response are refused: context extension is off in training
        files = self.open_files(Encoding("assistant", self.max_prompt_length, chat.truncate, "prompt"), root)
        self.mixture = PromptMixture(files, [file.weight for file in chat.files], seed, chat.validation)
        self.evaluation = ResponseEvaluation(self, *self.mixture.held_out(self.rl.eval_prompts))
        lines = self.file_lines()
        if self.mixture.files_without_held_out:
            names = ", ".join(self.mixture.files_without_held_out)
            lines.append(f"{names}: too few prompts to hold some out; the evaluation uses prompts of the training data")
        samples = self.rl.num_samples
        count = self.experiment.steps * self.experiment.data.batch_size // samples
        read = f"this run reads {count:,} prompts ({self.epochs_text(count)} epochs), {samples} responses to each"
        return [*lines, read]

    def _prepare_text(self, root: Path) -> list[str]:
        """Pretraining data, for the pretrained gradient (`rl.ptx_coef`) and for the held-out loss."""
        data, seed = self.experiment.data, self.experiment.seed
        self.held_out = text.HeldOut([], [])
        if not data.sources:
            if self.rl.ptx_coef:
                raise ValueError(f"rl.ptx_coef={self.rl.ptx_coef} needs data.sources, of which there are none")
            return []
        _, shards, lines = preparation.prepare(data, seed, root, tokenizer=self.tokenizer)
        mixture = text.TextMixture(shards, [source.weight for source in data.sources], data.seq_len, seed)
        mask = data.document_mask
        self.text_read = partial(mixture.batch, eot=self.tokenizer.eot, document_mask=mask)
        self.held_out = text.validation_batches(shards, data.seq_len, data.eval_tokens, self.text_rows, mask)
        return lines

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The prompts of these rows. A row is one response; neighbours answer the same prompt."""
        rows = np.asarray(rows, np.int32)
        return self.mixture.batch(rows // self.rl.num_samples) | {"rows": rows}

    def batches(self, next_row: int) -> Iterator[tuple[int, dict]]:
        """As `Task.batches`; after the value warm-up "ptx" is a list with a batch of text for every update."""
        if not self.rl.ptx_coef:
            yield from super().batches(next_row)
            return
        size, rows, like = self.experiment.data.batch_size, self.text_rows, self.text_batch
        local, warmup = self.local_rows(like), self.models.value_warmup_steps
        done = max(0, next_row // size - warmup)  # iterations that have read text
        with text.Batches(self.text_read, rows, local, done * self.updates * rows) as texts:
            for after, batch in super().batches(next_row):
                if after > warmup * size:
                    batch["ptx"] = [self.to_mesh(next(texts)[1], like, local) for _ in range(self.updates)]
                yield after, batch

    def describe(self, row: int) -> str:
        return self.mixture.describe(row // self.rl.num_samples)

    def close(self) -> None:
        for function in self.models.functions.values():
            function.close()

    # ---- the first state ----

    def stage_params(self, loaded: Loaded) -> tuple[Any, Any]:
        return loaded.trained, self.models.reference.frozen(loaded, self.fingerprints)

    def first_state(self, say: Callable[[str], None]) -> State:
        if not self.experiment.init_from:
            raise ValueError(f"{self.experiment.name} teaches a model; name it: --set init_from=PATH of an SFT run")
        policy, value, frozen = self._load(say)
        return self.program.start(policy, value)._replace(frozen=frozen)

    def load_frozen(self, meta: dict) -> Any:
        frozen = self._load(lambda text: None)[-1]
        self.check_frozen(meta)
        return frozen

    def _load(self, say: Callable[[str], None]) -> tuple[Any, Any, Any]:
        """Parameters of the policy and the value model, and frozen ones."""
        models, fingerprints = self.models, self.fingerprints
        policy, frozen = self.load(say)
        for name, model in models.scorers.items():
            frozen[name], fingerprints[name] = model.load(self.mesh, self.check_tokenizer)
            say(f"{name:<12}{model.path}, fingerprint {fingerprints[name]}")
        if not self.algorithm.critic:
            return policy, (), frozen
        value, frozen["value"], path = models.load_value(self.mesh, self.check_tokenizer, frozen, fingerprints)
        say(f"value       model starts from {path}")
        return policy, value, frozen

    # ---- an iteration ----

    def compile(self) -> tuple[Step, Any]:
        self._compiled = {name: program.compile() for name, program in self.lowered().items()}
        return self._iterate, None

    def lowered(self) -> dict[str, Any]:
        return lowered(self.programs, self.models, self.program, self.text_batch if self.rl.ptx_coef else ())

    def _iterate(self, state: State, batch: dict, limits: np.ndarray) -> tuple[State, dict]:
        """An iteration; `limits` are not used."""
        programs, step, rl_state, frozen = self._compiled, int(state.step), state.opt_state, state.frozen
        times = [time.perf_counter()]
        with jax.set_mesh(self.mesh):
            rollout = programs["sample"](state.params, frozen, batch["prompts"], batch["lengths"], self._seeds(step))
            sampled = int(jnp.sum(rollout.mask))
            times.append(time.perf_counter())
            outputs, scores, sampler_metrics = self._score(state, batch, rollout)
            given = outputs, rollout.ended, scores, rl_state["scores"], rl_state["kl_coef"], state.step
            experience, running, kl_coef, metrics = jax.block_until_ready(programs["compute_advantages"](*given))
            times.append(time.perf_counter())
            policy, value, update_metrics = self._update(state, experience, batch, step)
        new = {"policy": policy.opt_state, "value": value, "scores": running, "kl_coef": kl_coef}
        metrics = jax.device_get(metrics | sampler_metrics | update_metrics)
        times.append(time.perf_counter())
        metrics = {name: np.float32(x) for name, x in metrics.items()}
        policy_steps = step - self.models.value_warmup_steps
        metrics["lr"] = float(self.models.learning_rate(policy_steps)) if policy_steps >= 0 else 0.0
        seconds = dict(zip(("rollout_seconds", "score_seconds", "update_seconds"), np.diff(times)))
        metrics |= seconds | {"tokens": sampled, "tokens_per_second": sampled / (times[-1] - times[0])}
        return State(state.step + 1, policy.params, new, frozen), {k: np.asarray(v) for k, v in metrics.items()}

    def _score(self, state: State, batch: dict, rollout) -> tuple[Any, jax.Array, dict]:
        """Outputs of the models for a rollout, scores [b], and metrics of the sampler."""
        value = state.opt_state["value"].params if self.algorithm.critic else ()
        function = self.models.functions.get(REWARD)
        responses = decode(rollout, self.tokenizer, self.stops) if function else []
        outputs, metrics = self._compiled["forward_models"](state.params, value, state.frozen, rollout)
        if function is None:
            return outputs, outputs.scores, metrics
        prompts = self.mixture.texts(gather(batch["rows"]) // self.rl.num_samples)
        scores = function(prompts, responses)  # while the devices compute the outputs
        return outputs, jax.device_put(scores, outputs.scores.sharding), metrics

    def _update(
        self, state: State, experience: Experience, batch: dict, step: int
    ) -> tuple[TrainState, TrainState | tuple, dict]:
        """All updates of an iteration: policy, value model, and metrics. The warm-up updates the value model only."""
        rl_state, frozen, programs = state.opt_state, state.frozen, self._compiled
        policy, value = TrainState(state.params, rl_state["policy"]), rl_state["value"]
        logged = []
        for n in range(self.updates):
            index = self._minibatch(step, n)
            metrics = {"applied": jnp.bool_(True)}
            if self.algorithm.critic:
                value, numbers = programs["value_step"](value, frozen["value"], experience, index)
                metrics |= {"value_loss": numbers["loss"], "value_grad_norm": numbers["grad_norm"]}
                metrics["applied"] &= numbers["applied"]
            if step >= self.models.value_warmup_steps:
                text = batch["ptx"][n] if self.rl.ptx_coef else ()
                policy, numbers = programs["policy_step"](policy, frozen["policy"], experience, index, text)
                numbers["applied"] &= metrics["applied"]
                metrics |= numbers
            else:
                metrics |= {"loss": jnp.float32(0), "grad_norm": jnp.float32(0)}
            logged.append(metrics)
        mean = {name: jnp.mean(jnp.stack([one[name] for one in logged])) for name in logged[0] if name != "applied"}
        return policy, value, mean | {"applied": jnp.all(jnp.stack([one["applied"] for one in logged]))}

    def _minibatch(self, step: int, update: int) -> np.ndarray:
        """Responses of an update; every epoch goes through all of them in its own order."""
        epoch, part = divmod(update, self.rl.minibatches)
        batch_size = self.experiment.data.batch_size
        order = np.random.default_rng((self.experiment.seed, step, 1 + epoch)).permutation(batch_size)
        size = batch_size // self.rl.minibatches
        return np.asarray(order[part * size : (part + 1) * size], np.int32)

    def _seeds(self, step: int) -> np.ndarray:
        """Of an iteration's responses; `_minibatch` uses the streams from 1 on."""
        draw = np.random.default_rng((self.experiment.seed, step, 0))
        return draw.integers(1 << 32, size=self.experiment.data.batch_size, dtype=np.uint32)

    # ---- evaluation ----

    def evaluate(self, state: State) -> dict[str, float]:
        metrics = self.evaluation.run(self.programs, state)
        if self.held_out.batches:  # how much worse the policy gets at pretraining data
            nats, tokens = self.held_out_nats(state._replace(frozen=state.frozen["policy"]), self.text_batch)
            metrics["eval_lm_loss"] = nats / tokens
        return metrics

    def samples(self, state: State) -> list[tuple[str, str]]:
        if self.evaluation.step != int(state.step):
            self.evaluation.run(self.programs, state)
        return list(zip(self.evaluation.prompts, self.evaluation.after["answers"]))[: report.SHOWN]
