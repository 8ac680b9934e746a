"""Reinforcement learning from scores (report §3.2.2): ppo, grpo and reinforce.

A step is an iteration. Responses are sampled, measured by policy, reference and value model, and scored; advantages are
computed; then policy and value model are updated, each by its own pure step. Five programs, each compiled once:

    roll      prompts -> responses                              generate/rollout.py
    measure   log-probabilities, reference's, values, scores    programs.py
    learn     scores -> advantages                              steps.experience
    policy_step, value_step                                     steps.update

A checkpoint holds policy, value model, both optimizers, the running mean and the KL coefficient; what is drawn depends
on seed and iteration alone. A killed run replays from its last checkpoint and ends as if it had not been killed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax.chat_format import chatml
from qwenjax.config import Experiment
from qwenjax.data.batches import text
from qwenjax.data.batches.prompts import PromptMixture
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.shards import prepare as preparation
from qwenjax.train import step as steps
from qwenjax.train.backbone import Loaded
from qwenjax.train.rl import report
from qwenjax.train.rl.evaluation import ResponseEvaluation, Texts, summary
from qwenjax.train.rl.models import REWARD, Models
from qwenjax.train.rl.programs import Programs, lowered, make
from qwenjax.train.rl.steps import Experience, TrainState
from qwenjax.train.stages import pretrain
from qwenjax.train.step import State
from qwenjax.train.task import Step, Task


class RLTask(Task):
    """A policy that learns from the scores of its own responses."""

    headline = "eval_score"
    programs: Programs

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        self.rl = rl = experiment.rl
        self.updates = rl.epochs * rl.minibatches  # of an iteration
        self.models = Models(experiment, self.compute, self.backbone)
        self.max_prompt_length = experiment.data.seq_len - rl.max_new_tokens  # for a prompt
        self.program = self.models.program(mesh, self.max_prompt_length, self._iterate)
        self.nll = jax.jit(self.backbone.loss(learning=False))

    # ---- data ----

    def prepare(self, root: Path) -> list[str]:
        chat, data = self.experiment.chat, self.experiment.data
        if not self.rl.reward:
            raise ValueError(
                f"{self.experiment.name} learns from scores and has none: --set rl.reward=PATH of a reward model, or "
                "FILE.py:FUNCTION"
            )
        self.tokenizer = self.load_tokenizer()
        self.stops = tuple(sorted({*(ids[0] for ids in chatml.stop_sequences(self.tokenizer)), self.tokenizer.eot}))
        for function in self.models.functions.values():
            function.start()
        # prompts that leave no room for the answer are refused: context extension is off in training
        files = self.open_files(Encoding("assistant", self.max_prompt_length, chat.truncate, "prompt"), root)
        weights = [file.weight for file in chat.files]
        self.mixture = PromptMixture(files, weights, self.experiment.seed, chat.validation)
        queries = self.experiment.steps * data.batch_size // self.rl.num_samples
        epochs = ", ".join(f"{n:.2f}" for n in self.mixture.epochs(queries))
        self.texts = Texts(self.tokenizer, self.stops, self.program)
        asked, found = self.mixture.held_out(self.rl.eval_prompts)
        self.evaluation = ResponseEvaluation(asked, found, self.models, self.texts, self.mesh, self.experiment.seed)
        said = [line for file in files for line in file.lines()] + self.mixture.lines()
        if self.mixture.shared:
            files = ", ".join(self.mixture.shared)
            said.append(f"{files}: too few prompts to hold some out; it is judged on some that it learns from")
        said.append(f"this run asks {queries:,} prompts ({epochs} epochs), {self.rl.num_samples} responses to each")
        self.held_out = text.HeldOut([], [])
        if data.sources:
            _, shards, lines = preparation.prepare(data, self.experiment.seed, root, tokenizer=self.tokenizer)
            shares = [source.weight for source in data.sources]
            self.text = text.TextMixture(shards, shares, data.seq_len, self.experiment.seed)
            self.text_read = partial(self.text.batch, eot=self.tokenizer.eot, isolate=data.document_mask)
            size = self.text_rows
            self.held_out = text.validation_rows(shards, data.seq_len, data.eval_tokens, size, data.document_mask)
            said += lines
        elif self.rl.ptx_coef:
            raise ValueError(
                f"rl.ptx_coef={self.rl.ptx_coef} is the weight of a loss on data.sources, of which there are none"
            )
        ids = (self.stops, self.tokenizer.im_end, self.tokenizer.size, self.tokenizer.eot)
        self.programs = make(self.models, self.program, *ids)
        return [f"data        {line}" for line in said]

    @property
    def text_rows(self) -> int:
        """Rows of pretraining data read together."""
        return self.rl.ptx_batch or self.experiment.data.batch_size // self.rl.minibatches

    @property
    def text_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The pretraining rows of one update."""
        data = replace(self.experiment.data, batch=self.text_rows)
        shapes = pretrain.batch_shapes(replace(self.experiment, task="pretrain", accumulate=1, data=data))
        return steps.placed_batch(shapes, data.seq_len, self.mesh)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Prompts of rows; a row is one response, and neighbours answer the same prompt."""
        found = self.mixture.batch(np.asarray(rows) // self.rl.num_samples)
        return {"prompts": found["tokens"], "lengths": found["lengths"], "rows": np.asarray(rows, np.int32)}

    def batches(self, next_row: int) -> Iterator[tuple[int, dict]]:
        if not self.rl.ptx_coef:
            yield from super().batches(next_row)
            return
        wanted, each = self.text_batch, self.text_rows
        places = wanted["inputs"].sharding.addressable_devices_indices_map(wanted["inputs"].shape).values()
        mine = np.unique(np.concatenate([np.arange(each)[index[0]] for index in places]))
        done = max(
            0, next_row // self.experiment.data.batch_size - self.models.value_warmup_steps
        )  # iterations that read text
        with text.Batches(self.text_read, each, mine, done * self.updates * each) as texts:
            for after, batch in super().batches(next_row):
                if after > self.models.value_warmup_steps * self.experiment.data.batch_size:
                    batch["ptx"] = [self._place(next(texts)[1], wanted, mine) for _ in range(self.updates)]
                yield after, batch

    def describe(self, row: int) -> str:
        return self.mixture.describe(row // self.rl.num_samples)

    def close(self) -> None:
        for function in self.models.functions.values():
            function.close()

    # ---- where it starts ----

    def joined(self, found: Loaded) -> tuple[Any, Any]:
        return found.trained, self.models.reference.frozen(found, self.fingerprints)

    def begin(self, say: Callable[[str], None]) -> State:
        if not self.experiment.init_from:
            raise ValueError(f"{self.experiment.name} teaches a model; name it: --set init_from=PATH of an SFT run")
        policy, value, frozen = self._load(say)
        return self.program.start(policy, value)._replace(frozen=frozen)

    def frozen(self, say: Callable[[str], None], meta: dict) -> Any:
        frozen = self._load(lambda text: None)[-1]
        self.same_models(meta)
        return frozen

    def _load(self, say: Callable[[str], None]) -> tuple[Any, Any, Any]:
        """Policy, value model and what is frozen."""
        models, prints = self.models, self.fingerprints
        policy, frozen = self.load(say)
        frozen |= models.load_scorers(self.mesh, self.same_tokenizer, prints)
        for name in models.scorers:
            say(f"{name:<12}{getattr(self.rl, name)}, fingerprint {prints[name]}")
        if not models.critic:
            return policy, (), frozen
        value, frozen["value"], path = models.load_value(self.mesh, self.same_tokenizer, frozen, prints)
        say(f"value       model starts as {path}")
        return policy, value, frozen

    # ---- an iteration ----

    def compile(self) -> tuple[Step, Any]:
        compiled = {name: one.compile() for name, one in self.lowered().items()}
        self._run = self.programs._replace(**compiled)
        return self._iterate, None

    def lowered(self) -> dict[str, Any]:
        model, text = self.experiment.model, self.text_batch if self.rl.ptx_coef else ()
        # any ids do for a plan, which has no tokenizer
        run = getattr(self, "programs", None) or make(self.models, self.program, (0,), 0, model.vocab, 0)
        return lowered(run, self.models, self.program, text)

    def _iterate(self, state: State, batch: dict, limits: np.ndarray) -> tuple[State, dict]:
        began = time.perf_counter()
        run, step, rest, frozen = self._run, int(state.step), state.opt_state, state.frozen
        with jax.set_mesh(self.mesh):
            rolled = run.sample(state.params, frozen, batch["prompts"], batch["lengths"], self._seeds(step))
            made = int(jnp.sum(rolled.mask))
            rolled_at = time.perf_counter()
            asks = REWARD in self.models.functions
            answers = self.texts.of(rolled) if asks else []
            value = rest["value"].params if self.models.critic else ()
            measured, seen = run.forward_models(state.params, value, frozen, rolled)
            scores = measured.scores
            if asks:  # while the devices measure
                rows = self.texts.whole(batch["rows"]) // self.rl.num_samples
                told = self.models.functions[REWARD](self.mixture.texts(rows), answers)
                scores = jax.device_put(told, scores.sharding)
            found = run.compute_advantages(measured, rolled.ended, scores, rest["scores"], rest["kl_coef"], state.step)
            experience, running, kl_coef, numbers = jax.block_until_ready(found)
            scored_at = time.perf_counter()
            policy, critic, updates = self._update(state, experience, batch, step)
            read = int(jnp.sum(measured.read.positions >= 0))
        rest = {"policy": policy.opt_state, "value": critic, "scores": running, "kl_coef": kl_coef}
        numbers = {name: np.float32(x) for name, x in jax.device_get(numbers | seen | updates).items()}
        done = time.perf_counter()
        texts = len(batch.get("ptx", ())) * self.text_rows
        learnt = read * self.rl.epochs + texts * self.experiment.data.seq_len
        seconds = {"rollout": rolled_at - began, "score": scored_at - rolled_at, "update": done - scored_at}
        numbers |= {
            "lr": 0.0
            if step < self.models.value_warmup_steps
            else float(self.models.rate(step - self.models.value_warmup_steps)),
            "tokens": made,
            "tokens_per_second": made / (done - began),
            "rollout_tokens_per_second": made / seconds["rollout"],
            "update_tokens_per_second": learnt / seconds["update"],
            **{f"{name}_seconds": value for name, value in seconds.items()},
        }
        return State(state.step + 1, policy.params, rest, frozen), {k: np.asarray(v) for k, v in numbers.items()}

    def _update(self, state: State, experience: Experience, batch: dict, step: int) -> tuple[TrainState, Any, dict]:
        """All updates of an iteration; in the first `value_steps` of ppo the policy stays."""
        rest, frozen = state.opt_state, state.frozen
        policy, critic = TrainState(state.params, rest["policy"]), rest["value"]
        learns = step >= self.models.value_warmup_steps
        size, seen = self.experiment.data.batch_size // self.rl.minibatches, []
        for n in range(self.updates):
            epoch, part = divmod(n, self.rl.minibatches)
            order = np.random.default_rng((self.experiment.seed, step, 1 + epoch)).permutation(
                self.experiment.data.batch_size
            )
            rows = np.asarray(order[part * size : (part + 1) * size], np.int32)
            numbers = {"applied": jnp.bool_(True)}
            if self.models.critic:
                critic, found = self._run.value_step(critic, frozen["value"], experience, rows)
                numbers |= {"value_loss": found["loss"], "value_grad_norm": found["grad_norm"]}
                numbers["applied"] &= found["applied"]
            if learns:
                text = batch["ptx"][n] if self.rl.ptx_coef else ()
                policy, found = self._run.policy_step(policy, frozen["policy"], experience, rows, text)
                found["applied"] &= numbers["applied"]
                numbers |= found
            else:
                numbers |= {"loss": jnp.float32(0), "grad_norm": jnp.float32(0)}
            seen.append(numbers)
        mean = {name: jnp.mean(jnp.stack([one[name] for one in seen])) for name in seen[0] if name != "applied"}
        return policy, critic, mean | {"applied": jnp.all(jnp.stack([one["applied"] for one in seen]))}

    def _seeds(self, step: int) -> np.ndarray:
        """Of an iteration's responses."""
        draw = np.random.default_rng((self.experiment.seed, step, 0))  # orders of an update have 1 and more
        return draw.integers(1 << 32, size=self.experiment.data.batch_size, dtype=np.uint32)

    # ---- judgement ----

    def evaluate(self, state: State) -> dict[str, float]:
        return self.evaluation.run(self.programs, state) | self._text_loss(state)

    def _text_loss(self, state: State) -> dict[str, float]:
        """Held-out loss on the pretraining data: the alignment tax."""
        if not self.held_out.batches:
            return {}
        nats, tokens = self.held_out_nats(state._replace(frozen=state.frozen["policy"]), self.text_batch)
        return {"eval_lm_loss": nats / tokens}

    def samples(self, state: State) -> list[tuple[str, str]]:
        if self.evaluation.step != int(state.step):
            self.evaluation.run(self.programs, state)
        return list(zip(self.evaluation.prompts, self.evaluation.after["answers"]))[: report.SHOWN]

    # ---- words ----

    def line(self, numbers: dict) -> list[str]:
        return [
            f"score {numbers['score']:+.3f}",
            f"KL {numbers['kl']:.2f}",
            f"length {numbers['length']:.0f}",
            f"entropy {numbers['entropy']:.2f}",
        ]

    def summary_line(self, metrics: dict[str, float]) -> str:
        return report.summary_line(metrics, summary(self.evaluation.before))

    def report(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        return report.write(self, workdir, rows, metrics)

    @property
    def pictures(self) -> tuple[str, ...]:
        return ("curves.png",)

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [("talk to it", f"python -m qwenjax.chat --model={workdir}")]
