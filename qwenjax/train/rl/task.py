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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwenjax.config import Experiment
from qwenjax.data import dialogues, stream
from qwenjax.data import prepare as preparation
from qwenjax.generate.rollout import Rollout
from qwenjax.text import chatml
from qwenjax.train import pretrain
from qwenjax.train import step as steps
from qwenjax.train.backbone import Loaded
from qwenjax.train.rl import report as rl_report
from qwenjax.train.rl import scores
from qwenjax.train.rl.models import REWARD, Models
from qwenjax.train.rl.programs import Programs, lowered, make
from qwenjax.train.rl.steps import Experience, Learner
from qwenjax.train.step import State
from qwenjax.train.task import Step, Task


class RL(Task):
    """A policy that learns from the scores of its own responses."""

    headline = "eval_score"
    programs: Programs

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        self.rl = rl = experiment.rl
        self.updates = rl.epochs * rl.minibatches  # of an iteration
        self.models = Models(experiment, self.compute, self.backbone)
        self.room = experiment.data.length - rl.new_tokens  # for a prompt
        self.program = self.models.program(mesh, self.room, self._iterate)
        self.nll = jax.jit(self.backbone.loss(learning=False))
        self._replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}

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
        # prompts that leave no room for the answer are refused: context extension is off in training
        files = self.open_files(dialogues.Encoding("assistant", self.room, chat.truncate, "prompt"), root)
        weights = [file.weight for file in chat.files]
        self.mixture = dialogues.PromptMixture(files, weights, self.experiment.seed, chat.validation)
        queries = self.experiment.steps * data.batch // self.rl.responses
        epochs = ", ".join(f"{n:.2f}" for n in self.mixture.epochs(queries))
        self.few = [file.index["source"] for file in files if file.few]
        self.asked, self.asked_texts = self.mixture.held_out(self.rl.eval_prompts)
        said = [line for file in files for line in file.lines()] + self.mixture.lines()
        if self.few:
            said.append(
                f"{', '.join(self.few)}: too few prompts to hold some out; it is judged on those it learns from"
            )
        said.append(f"this run asks {queries:,} prompts ({epochs} epochs), {self.rl.responses} responses to each")
        self.held_out = stream.HeldOut([], [])
        if data.sources:
            _, shards, lines = preparation.prepare(data, self.experiment.seed, root, tokenizer=self.tokenizer)
            shares = [source.weight for source in data.sources]
            self.text = stream.Mixture(shards, shares, data.length, self.experiment.seed)
            self.text_read = partial(self.text.batch, eot=self.tokenizer.eot, isolate=data.isolate)
            size = self.text_rows
            self.held_out = stream.validation_rows(shards, data.length, data.eval_tokens, size, data.isolate)
            said += lines
        elif self.rl.ptx:
            raise ValueError(f"rl.ptx={self.rl.ptx} is the weight of a loss on data.sources, of which there are none")
        self.programs = make(self.models, self.program.shardings, self.stops, self.tokenizer.size, self.tokenizer.eot)
        return [f"data        {line}" for line in said]

    @property
    def text_rows(self) -> int:
        """Rows of pretraining data read together."""
        return self.rl.ptx_rows or self.experiment.data.batch // self.rl.minibatches

    @property
    def text_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The pretraining rows of one update."""
        data = replace(self.experiment.data, batch=self.text_rows)
        shapes = pretrain.batch_shapes(replace(self.experiment, task="pretrain", accumulate=1, data=data))
        return steps.placed_batch(shapes, data.length, self.mesh)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Prompts of rows; a row is one response, and neighbours answer the same prompt."""
        found = self.mixture.batch(np.asarray(rows) // self.rl.responses)
        return {"prompts": found["tokens"], "lengths": found["lengths"], "rows": np.asarray(rows, np.int32)}

    def batches(self, next_row: int) -> Iterator[tuple[int, dict]]:
        if not self.rl.ptx:
            yield from super().batches(next_row)
            return
        wanted, each = self.text_batch, self.text_rows
        places = wanted["inputs"].sharding.addressable_devices_indices_map(wanted["inputs"].shape).values()
        mine = np.unique(np.concatenate([np.arange(each)[index[0]] for index in places]))
        first = next_row // self.experiment.data.batch * self.updates * each
        with stream.Batches(self.text_read, each, mine, first) as texts:
            for after, batch in super().batches(next_row):
                batch["ptx"] = [self._place(next(texts)[1], wanted, mine) for _ in range(self.updates)]
                yield after, batch

    def describe(self, row: int) -> str:
        return self.mixture.describe(row // self.rl.responses)

    # ---- where it starts ----

    def joined(self, found: Loaded) -> tuple[Any, Any]:
        return found.trained, self.models.freeze(found.trained, found.frozen, self.fingerprints)

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
        frozen |= models.load_judges(self.mesh, self.same_tokenizer, prints)
        for name in models.judges:
            say(f"{name:<12}{getattr(self.rl, name)}, fingerprint {prints[name]}")
        if not models.critic:
            return policy, (), frozen
        value, frozen["value"], path = models.load_value(self.mesh, self.same_tokenizer, frozen, prints)
        say(f"value       model starts as {path}")
        return policy, value, frozen

    # ---- an iteration ----

    def compile(self) -> tuple[Step, Any]:
        return self._iterate, None  # its programs are compiled when they are first called

    def lowered(self) -> dict[str, Any]:
        return lowered(self.models, self.program)

    def _iterate(self, state: State, batch: dict, limits: np.ndarray) -> tuple[State, dict]:
        began = time.perf_counter()
        run, step, rest, frozen = self.programs, int(state.step), state.opt_state, state.frozen
        with jax.set_mesh(self.mesh):
            rolled = run.roll(state.params, frozen, batch["prompts"], batch["lengths"], self._seeds(step))
            made = int(jnp.sum(rolled.mask))
            rolled_at = time.perf_counter()
            value = rest["value"].params if self.models.critic else ()
            found, seen = run.measure(state.params, value, frozen, rolled)
            raw = found[-1]
            if REWARD in self.models.functions:  # while the devices measure
                raw = self._told(REWARD, rolled, self.mixture.texts(self._rows_of(batch) // self.rl.responses))
            jax.block_until_ready(found)
            learned, running, kl_coef, numbers = run.learn(
                found, rolled.ended, raw, rest["scores"], rest["kl_coef"], state.step
            )
            scored_at = time.perf_counter()
            policy, critic, updates = self._update(state, learned, batch, step)
        rest = {"policy": policy.opt_state, "value": critic, "scores": running, "kl_coef": kl_coef}
        numbers = jax.device_get(numbers | seen | updates)
        done = time.perf_counter()
        width = self.experiment.data.batch * self.experiment.data.length
        numbers |= {
            "tokens": np.float32(made),
            "rollout_tokens_per_second": np.float32(made / (rolled_at - began)),
            "update_tokens_per_second": np.float32(width * self.rl.epochs / (done - scored_at)),
            "rollout_seconds": np.float32(rolled_at - began),
            "score_seconds": np.float32(scored_at - rolled_at),
            "update_seconds": np.float32(done - scored_at),
        }
        return State(state.step + 1, policy.params, rest, frozen), numbers

    def _update(self, state: State, learned: Experience, batch: dict, step: int) -> tuple[Learner, Any, dict]:
        """All updates of an iteration; in the first `value_steps` of ppo the policy stays."""
        rest, frozen = state.opt_state, state.frozen
        policy, critic = Learner(state.params, rest["policy"]), rest["value"]
        learns = not (self.models.critic and step < self.rl.value_steps)
        size, seen = self.experiment.data.batch // self.rl.minibatches, []
        for n in range(self.updates):
            epoch, part = divmod(n, self.rl.minibatches)
            order = np.random.default_rng((self.experiment.seed, step, epoch)).permutation(self.experiment.data.batch)
            index = jnp.asarray(order[part * size : (part + 1) * size], jnp.int32)
            numbers = {"applied": jnp.bool_(True)}
            if self.models.critic:
                critic, found = self.programs.value_step(critic, frozen["value"], learned, index)
                numbers |= {"value_loss": found["loss"], "value_grad_norm": found["grad_norm"]}
                numbers["applied"] &= found["applied"]
            if learns:
                text = batch["ptx"][n] if self.rl.ptx else ()
                policy, found = self.programs.policy_step(policy, frozen["policy"], learned, index, text)
                found["applied"] &= numbers["applied"]
                numbers |= {{"clipped": "clip_fraction"}.get(k, k): v for k, v in found.items() if k != "entropy"}
            else:
                numbers |= {"loss": jnp.float32(0), "grad_norm": jnp.float32(0)}
            seen.append(numbers)
        mean = {name: jnp.mean(jnp.stack([one[name] for one in seen])) for name in seen[0] if name != "applied"}
        return policy, critic, mean | {"applied": jnp.all(jnp.stack([one["applied"] for one in seen]))}

    def _seeds(self, step: int) -> np.ndarray:
        """Of an iteration's responses."""
        return np.random.default_rng((self.experiment.seed, step)).integers(
            1 << 32, size=self.experiment.data.batch, dtype=np.uint32
        )

    def _rows_of(self, batch: dict) -> np.ndarray:
        return np.asarray(self._whole(batch["rows"]))

    def _whole(self, x: jax.Array) -> np.ndarray:
        """A global array on every host."""
        return np.asarray(self._replicate(x))

    def _answers(self, rolled: Rollout) -> list[str]:
        """The responses as texts, without their end."""
        tokens, mask = self._whole(rolled.tokens), self._whole(rolled.mask)
        return [
            self.tokenizer.decode([t for t in row[real].tolist() if t not in self.stops])
            for row, real in zip(tokens, mask)
        ]

    def _told(self, name: str, rolled: Rollout, texts: list[dict]) -> np.ndarray:
        """Scores by a Python function."""
        function, spec = self.models.functions[name], getattr(self.rl, name)
        answers = self._answers(rolled)
        return scores.everywhere(lambda: scores.call(function, spec, self.rl.seconds, texts, answers), len(answers))

    # ---- judgement ----

    def _judge(self, state: State, reference: bool) -> dict[str, Any]:
        """Answers to the held-out prompts, by the policy or the reference, and what is to be said of them."""
        rows, split = len(self.asked["lengths"]), self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        fill = np.arange(-(-rows // split) * split) % rows
        asked = self.asked["tokens"][fill], self.asked["lengths"][fill]
        seeds = np.arange(len(fill), dtype=np.uint32) + np.uint32(self.experiment.seed)
        with jax.set_mesh(self.mesh):
            if reference:
                rolled = self.programs.roll_before(state.frozen, *asked, seeds)
            else:
                rolled = self.programs.roll(state.params, state.frozen, *asked, seeds)
            found = self.programs.look(state.params, state.frozen, rolled)
            out = {name: self._whole(x)[:rows] for name, x in found.items()}
            for name in self.models.functions:
                out[name] = self._told(name, rolled, [self.asked_texts[i] for i in fill])[:rows]
            return out | {"answers": self._answers(rolled)[:rows]}

    def evaluate(self, state: State) -> dict[str, float]:
        if not self.before:
            self.before = self._judge(state, reference=True)
        self.after = self._judge(state, reference=False)
        return rl_report.summary(self.after) | self._text_loss(state)

    def _text_loss(self, state: State) -> dict[str, float]:
        """Held-out loss on the pretraining data: the alignment tax."""
        if not self.held_out.batches:
            return {}
        nats, tokens = self.held_out_nats(state._replace(frozen=state.frozen["policy"]), self.text_batch)
        return {"eval_lm_loss": nats / tokens}

    def samples(self, state: State) -> list[tuple[str, str]]:
        if not self.after:
            return []
        asked = [chatml.render(row["prompt"]) for row in self.asked_texts]
        return list(zip(asked, self.after["answers"]))[: rl_report.SHOWN]

    # ---- words ----

    def line(self, numbers: dict) -> list[str]:
        return [
            f"score {numbers['score']:+.3f}",
            f"KL {numbers['kl']:.2f}",
            f"length {numbers['length']:.0f}",
            f"entropy {numbers['entropy']:.2f}",
        ]

    def judged(self, metrics: dict[str, float]) -> str:
        return rl_report.judged(metrics, rl_report.summary(self.before))

    def report(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        return rl_report.write(self, workdir, rows, metrics, rl_report.summary(self.before))

    @property
    def pictures(self) -> tuple[str, ...]:
        return ("curves.png",)

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [("talk to it", f"python -m qwenjax.chat --model={workdir}")]
