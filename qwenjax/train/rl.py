"""Reinforcement learning from scores (report §3.2.2): ppo, grpo and reinforce.

A step is an iteration. Responses are sampled, measured by policy, reference and value model, and scored; advantages are
computed; then policy and value model are updated, each by its own pure step. Five programs, each compiled once:

    roll      prompts -> responses                              generate/rollout.py
    measure   log-probabilities, reference's, values, scores    rl_steps.py
    learn     scores -> advantages                              rl_steps.experience
    policy_step, value_step                                     rl_steps.update

A checkpoint holds policy, value model, both optimizers, the running mean and the KL coefficient; what is drawn depends
on seed and iteration alone. A killed run replays from its last checkpoint and ends as if it had not been killed.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwenjax import checkpoint, optim, storage
from qwenjax.api.source import open_source
from qwenjax.config import Experiment
from qwenjax.data import dialogues, stream
from qwenjax.data import prepare as preparation
from qwenjax.generate.rollout import Rollout, rollout
from qwenjax.generate.sampling import Sample
from qwenjax.model import reward, transformer
from qwenjax.objectives.returns import RunningMean
from qwenjax.text import chatml
from qwenjax.train import pretrain, rl_report, rl_steps, scores
from qwenjax.train import step as steps
from qwenjax.train.backbone import Backbone, Loaded
from qwenjax.train.rl_steps import Experience, Learner
from qwenjax.train.scores import Judge
from qwenjax.train.step import Program, State
from qwenjax.train.task import Step, Task

REFERENCE, REWARD, GOLD, VALUE = "reference", "reward", "gold", "value"


class RL(Task):
    """A policy that learns from the scores of its own responses."""

    headline = "eval_score"

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        self.rl = rl = experiment.rl
        if experiment.lora.whole:
            raise ValueError(
                "lora.whole trains embeddings in full; the reference needs them as they were: leave it out"
            )
        self.room = experiment.data.length - rl.new_tokens  # for a prompt
        self.updates = rl.epochs * rl.minibatches  # of an iteration
        self.critic = experiment.task == "ppo"
        self.judges = {
            name: Judge.of(path, experiment.model, self.compute)
            for name, path in ((REWARD, rl.reward), (GOLD, rl.gold))
            if path and not scores.is_function(path)
        }
        self.functions = {
            name: scores.load_function(path)
            for name, path in ((REWARD, rl.reward), (GOLD, rl.gold))
            if path and scores.is_function(path)
        }
        for name, judge in self.judges.items():
            if judge.network.cfg.context < experiment.data.length:
                raise ValueError(
                    f"data.length={experiment.data.length} exceeds what rl.{name} was trained on "
                    f"({judge.network.cfg.context}): its scores of longer texts mean nothing; lower data.length"
                )
        self.tx = optim.make(experiment.optim, experiment.steps, every=self.updates)
        self.value_tx = optim.make(rl.value_optim, experiment.steps, every=self.updates)
        self.valuer = Backbone(self._value_experiment(), self.compute, head=False) if self.critic else None
        self.program = self._program()
        self.nll = jax.jit(self.backbone.loss(learning=False))
        self._compile_steps()
        self.before: dict[str, Any] = {}

    def _value_experiment(self) -> Experiment:
        """Shape of the value model: that of the model it starts from."""
        cfg, path = self.experiment.model, self.rl.value_from
        if path and storage.path(path).exists():
            cfg = open_source(path).config
        elif REWARD in self.judges and not path:
            cfg = replace(self.judges[REWARD].network.cfg, tie_embeddings=cfg.tie_embeddings)
        return replace(self.experiment, model=cfg)

    # ---- shapes ----

    def _parts(self, key: jax.Array) -> tuple[Any, Any, Any]:
        """Random parameters, boxed: policy's, value model's, and what is frozen."""
        policy, base = self.backbone.random(key)
        value, frozen = (), {"policy": base, REFERENCE: ()}
        if not self.experiment.lora.rank:
            frozen[REFERENCE] = jax.tree.map(lambda x: x.astype(self.compute.dtype), policy)
        if self.critic:
            trained, frozen[VALUE] = self.valuer.random(key)
            value = {"backbone": trained, "reward": reward.init_head(self.valuer.cfg, key)}
        return policy, value, frozen | {name: judge.random(key) for name, judge in self.judges.items()}

    def _fresh(self, policy: Any, value: Any, frozen: Any) -> State:
        critic = Learner(value, self.value_tx.init(value)) if self.critic else ()
        rest = {
            "policy": self.tx.init(policy),
            "value": critic,
            "scores": RunningMean.zero(),
            "kl_coef": jnp.float32(self.rl.kl_coef),
        }
        return State(jnp.int32(0), policy, rest, frozen)

    def _program(self) -> Program:
        experiment, mesh = self.experiment, self.mesh
        steps.check_batch(experiment, mesh)

        def init() -> State:
            return self._fresh(*nn.meta.unbox(self._parts(jax.random.key(experiment.seed))))

        policy, value, frozen = steps.shardings(mesh, jax.eval_shape(self._parts, jax.random.key(0)))
        here = NamedSharding(mesh, PartitionSpec())
        shapes = jax.eval_shape(init)
        rest = jax.tree.map(lambda x: here, shapes.opt_state)
        rest["policy"] = steps.optimizer_places(self.tx, shapes.opt_state["policy"], policy, here)
        if self.critic:
            moments = shapes.opt_state["value"].opt_state
            rest["value"] = Learner(value, steps.optimizer_places(self.value_tx, moments, value, here))
        places = State(here, policy, rest, frozen)
        b = experiment.data.batch
        shape = {
            "prompts": jax.ShapeDtypeStruct((b, self.room), np.int32),
            "lengths": jax.ShapeDtypeStruct((b,), np.int32),
            "rows": jax.ShapeDtypeStruct((b,), np.int32),
        }
        return Program(
            mesh=mesh,
            shapes=shapes,
            shardings=places,
            batch=steps.placed_batch(shape, experiment.data.length, mesh),
            init=steps.in_mesh(mesh, jax.jit(init, out_shardings=places)),
            start=steps.in_mesh(mesh, jax.jit(self._fresh, in_shardings=(policy, value, frozen), out_shardings=places)),
            step=self._iterate,
        )

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
        self._compile_rollouts()
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
        """Policy and value model, and all that is frozen."""
        frozen = {"policy": found.frozen, REFERENCE: ()}
        if not self.experiment.lora.rank:
            cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(self.compute.dtype), tree))
            frozen[REFERENCE] = cast(found.trained)
            self.fingerprints[REFERENCE] = checkpoint.fingerprint(frozen[REFERENCE])
        return found.trained, frozen

    def begin(self, say: Callable[[str], None]) -> State:
        if not self.experiment.init_from and not self.judges:
            return self.program.init()
        policy, frozen = self.load(say)
        frozen |= self._load_judges(say)
        value: Any = ()
        if self.critic:
            value, frozen[VALUE] = self._load_value(say, frozen)
        return self.program.start(policy, value, frozen)

    def load(self, say: Callable[[str], None]) -> tuple[Any, Any]:
        self.source  # raises where there is none
        return super().load(say)

    def _load_judges(self, say: Callable[[str], None]) -> dict[str, Any]:
        loaded = {}
        for name, judge in self.judges.items():
            path = getattr(self.rl, name)
            loaded[name], self.fingerprints[name] = judge.load(path, self.mesh, self.same_tokenizer)
            say(f"{name:<12}{path}")
        return loaded

    def _load_value(self, say: Callable[[str], None], frozen: dict) -> tuple[Any, Any]:
        """From the reward model, whose scores it is to foretell, unless rl.value_from says otherwise."""
        path = self.rl.value_from or (self.rl.reward if REWARD in self.judges else self.experiment.init_from)
        found = self.valuer.load(path, self.mesh, self.experiment.seed, lambda text: None)
        if found.tokenizer is not None:
            self.same_tokenizer(found.tokenizer.fingerprint, path)
        say(f"value model from {path}")
        head = found.reward
        if head is None:
            head = reward.init_head(self.valuer.cfg, jax.random.key(self.experiment.seed)).value
        elif path == self.rl.reward and REWARD in frozen:
            head = head * frozen[REWARD]["gain"]
        if self.experiment.lora.rank:
            self.fingerprints[VALUE] = checkpoint.fingerprint(found.frozen)
        return {"backbone": found.trained, "reward": head}, found.frozen

    def frozen(self, say: Callable[[str], None], meta: dict) -> Any:
        if not self.experiment.init_from and not self.judges:
            return self.program.init().frozen
        quiet = lambda text: None  # noqa: E731
        frozen = self.load(quiet)[1] | self._load_judges(quiet)
        if self.critic:
            frozen[VALUE] = self._load_value(quiet, frozen)[1]
        self.same_models(meta)
        return frozen

    # ---- the five programs ----

    def _compile_steps(self) -> None:
        experiment, rl, backbone = self.experiment, self.rl, self.backbone
        parts = rl.minibatches * experiment.accumulate
        policy_loss = rl_steps.policy_loss(experiment.task, rl, backbone)
        text_loss = backbone.loss(learning=False)

        def measure(policy, value, frozen, rolled: Rollout):
            def part(rolled):
                read = rl_steps.responses(rolled)
                logp, entropy = rl_steps.log_probs(backbone.plain, backbone.variables(policy, frozen["policy"]), read)
                reference, _ = rl_steps.log_probs(self._reference, self._reference_parts(frozen), read)
                values, raw = jnp.zeros(logp.shape, jnp.float32), jnp.zeros(len(logp), jnp.float32)
                if self.critic:
                    collections = self.valuer.variables(value["backbone"], frozen[VALUE])
                    at = (read.tokens, read.positions)
                    values = reward.values(self.valuer.plain, collections, value["reward"], *at)
                if REWARD in self.judges:
                    raw = self.judges[REWARD].score(frozen[REWARD], read)
                return read, logp, entropy, reference, values, raw

            found = rl_steps.in_parts(part, parts, rolled)
            return found, rl_steps.sampler_numbers(rolled, found[1])

        def learn(found, ended, raw, running, kl_coef, step):
            read, logp, entropy, reference, values, _ = found
            if rl.shuffle:
                key = jax.random.fold_in(jax.random.key(experiment.seed + 1), step)
                raw = jax.random.permutation(key, raw)
            learned, running, kl_coef, numbers = rl_steps.experience(
                experiment.task, rl, read, raw, ended, logp, reference, values, running, kl_coef
            )
            numbers["entropy"] = jnp.sum(entropy) / jnp.maximum(jnp.sum(read.mask), 1)
            return learned, running, kl_coef, numbers

        def policy_step(learner, frozen, learned: Experience, index, text):
            also = (text_loss, text, rl.ptx) if rl.ptx else None
            rows = learned.rows(index)
            return rl_steps.update(policy_loss, self.tx, learner, frozen, rows, experiment.accumulate, also)

        def value_step(learner, frozen, learned: Experience, index):
            loss, rows = rl_steps.value_loss(rl, self.valuer), learned.rows(index)
            return rl_steps.update(loss, self.value_tx, learner, frozen, rows, experiment.accumulate)

        self.measure, self.learn = jax.jit(measure), jax.jit(learn)
        self.policy_step = jax.jit(policy_step, donate_argnums=0)
        self.value_step = jax.jit(value_step, donate_argnums=0)

    def _compile_rollouts(self) -> None:
        """Needs the tokenizer's ids."""
        make = partial(
            rollout,
            transformer.Transformer(self.experiment.model, self.compute),
            new=self.rl.new_tokens,
            sampling=Sample(top_p=self.rl.top_p),
            stops=self.stops,
            size=self.tokenizer.size,
            pad=self.tokenizer.eot,
        )

        def roll(policy, frozen, prompts, lengths, step):
            key = jax.random.fold_in(jax.random.key(self.experiment.seed), step)
            seeds = jax.random.bits(key, lengths.shape, jnp.uint32)
            return make(self.backbone.params(policy, frozen), prompts, lengths, seeds)

        self.roll = jax.jit(roll)
        self.roll_reference = jax.jit(
            lambda frozen, prompts, lengths, seeds: make(self._reference_full(frozen), prompts, lengths, seeds)
        )
        self.roll_seeded = jax.jit(
            lambda policy, frozen, prompts, lengths, seeds: make(
                self.backbone.params(policy, frozen), prompts, lengths, seeds
            )
        )

    @property
    def _reference(self) -> transformer.Transformer:
        """The policy's network without adapters."""
        return transformer.Transformer(self.experiment.model, self.compute)

    def _reference_parts(self, frozen: dict) -> dict:
        """What the reference computes with: a copy, or the base that the adapters stand on."""
        return {"params": frozen[REFERENCE]} if frozen[REFERENCE] != () else frozen["policy"]

    def _reference_full(self, frozen: dict) -> dict:
        if frozen[REFERENCE] != ():
            return frozen[REFERENCE]
        empty = {"params": {}, "lora": {}}
        return self.backbone.params(empty, frozen["policy"])

    # ---- an iteration ----

    def compile(self) -> tuple[Step, Any]:
        return self._iterate, None  # its programs are compiled when they are first called

    def _iterate(self, state: State, batch: dict, limits: np.ndarray) -> tuple[State, dict]:
        began = time.perf_counter()
        step, rest, frozen = int(state.step), state.opt_state, state.frozen
        with jax.set_mesh(self.mesh):
            rolled = self.roll(state.params, frozen["policy"], batch["prompts"], batch["lengths"], state.step)
            made = int(jnp.sum(rolled.mask))
            rolled_at = time.perf_counter()
            value = rest["value"].params if self.critic else ()
            found, seen = self.measure(state.params, value, frozen, rolled)
            raw = found[-1]
            if REWARD in self.functions:
                raw = self._told(REWARD, rolled, self.mixture.texts(self._rows_of(batch) // self.rl.responses))
            learned, running, kl_coef, numbers = self.learn(
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
        learns = not (self.critic and step < self.rl.value_steps)
        size, seen = self.experiment.data.batch // self.rl.minibatches, []
        for n in range(self.updates):
            epoch, part = divmod(n, self.rl.minibatches)
            order = np.random.default_rng((self.experiment.seed, step, epoch)).permutation(self.experiment.data.batch)
            index = jnp.asarray(order[part * size : (part + 1) * size], jnp.int32)
            numbers = {"applied": jnp.bool_(True)}
            if self.critic:
                critic, found = self.value_step(critic, frozen[VALUE], learned, index)
                numbers |= {"value_loss": found["loss"], "value_grad_norm": found["grad_norm"]}
                numbers["applied"] &= found["applied"]
            if learns:
                text = batch["ptx"][n] if self.rl.ptx else ()
                policy, found = self.policy_step(policy, frozen["policy"], learned, index, text)
                found["applied"] &= numbers["applied"]
                numbers |= {{"clipped": "clip_fraction"}.get(k, k): v for k, v in found.items() if k != "entropy"}
            else:
                numbers |= {"loss": jnp.float32(0), "grad_norm": jnp.float32(0)}
            seen.append(numbers)
        mean = {name: jnp.mean(jnp.stack([one[name] for one in seen])) for name in seen[0] if name != "applied"}
        return policy, critic, mean | {"applied": jnp.all(jnp.stack([one["applied"] for one in seen]))}

    def _rows_of(self, batch: dict) -> np.ndarray:
        return np.asarray(self._whole(batch["rows"]))

    def _whole(self, x: jax.Array) -> np.ndarray:
        """A global array on every host."""
        here = NamedSharding(self.mesh, PartitionSpec())
        return np.asarray(jax.jit(lambda x: x, out_shardings=here)(x))

    def _answers(self, rolled: Rollout) -> list[str]:
        """The responses as texts, without their end."""
        tokens, mask = self._whole(rolled.tokens), self._whole(rolled.mask)
        return [
            self.tokenizer.decode([t for t in row[real].tolist() if t not in self.stops])
            for row, real in zip(tokens, mask)
        ]

    def _told(self, name: str, rolled: Rollout, texts: list[dict]) -> np.ndarray:
        """Scores by a Python function."""
        function, spec = self.functions[name], getattr(self.rl, name)
        answers = self._answers(rolled)
        return scores.everywhere(lambda: scores.call(function, spec, self.rl.seconds, texts, answers), len(answers))

    # ---- judgement ----

    def _judge(self, state: State, reference: bool) -> dict[str, Any]:
        """Answers to the held-out prompts, by the policy or the reference, and what is to be said of them."""
        rows = len(self.asked["lengths"])
        size = -(-rows // self._devices) * self._devices
        fill = np.arange(size) % rows
        prompts, lengths = self.asked["tokens"][fill], self.asked["lengths"][fill]
        seeds = np.arange(size, dtype=np.uint32) + np.uint32(self.experiment.seed)
        frozen = state.frozen
        with jax.set_mesh(self.mesh):
            if reference:
                rolled = self.roll_reference(frozen, prompts, lengths, seeds)
            else:
                rolled = self.roll_seeded(state.params, frozen["policy"], prompts, lengths, seeds)
            found = self._read(state.params, frozen, rolled)
            out = {name: self._whole(x)[:rows] for name, x in found.items()}
            for name, function in self.functions.items():
                texts = [self.asked_texts[i] for i in fill]
                out[name] = self._told(name, rolled, texts)[:rows]
            out["answers"] = self._answers(rolled)[:rows]
        return out

    @property
    def _devices(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in ("data", "fsdp"))

    @property
    def _read(self) -> Callable:
        if not hasattr(self, "_read_jit"):

            def read(policy, frozen, rolled):
                seen = rl_steps.responses(rolled)
                logp, entropy = rl_steps.log_probs(
                    self.backbone.plain, self.backbone.variables(policy, frozen["policy"]), seen
                )
                ref, _ = rl_steps.log_probs(self._reference, self._reference_parts(frozen), seen)
                count = jnp.sum(seen.mask, axis=1)
                out = {"kl": jnp.sum(logp - ref, axis=1), "length": count, "ended": rolled.ended}
                out["entropy"] = jnp.sum(entropy, axis=1) / jnp.maximum(count, 1)
                return out | {name: judge.score(frozen[name], seen) for name, judge in self.judges.items()}

            self._read_jit = jax.jit(read)
        return self._read_jit

    def evaluate(self, state: State) -> dict[str, float]:
        if not self.before:
            self.before = self._judge(state, reference=True)
        self.after = self._judge(state, reference=False)
        return {**self._summary(self.after), **self._text_loss(state)}

    def _summary(self, found: dict[str, Any]) -> dict[str, float]:
        names = {REWARD: "eval_score", GOLD: "eval_gold"}
        means = {names.get(k, f"eval_{k}"): float(np.mean(v)) for k, v in found.items() if k != "answers"}
        return means | {"eval_unique": len(set(found["answers"])) / len(found["answers"])}

    def _text_loss(self, state: State) -> dict[str, float]:
        """Held-out loss on the pretraining data: the alignment tax."""
        if not self.held_out.batches:
            return {}
        total, weight = 0.0, 0.0
        with jax.set_mesh(self.mesh):
            for batch in self.held_out.batches:
                placed = self._place(batch, self.text_batch)
                total += float(self.nll(state.params, state.frozen["policy"], placed, None)[0])
                weight += float(batch["weights"].sum())
        return {"eval_lm_loss": total / weight}

    def samples(self, state: State) -> list[tuple[str, str]]:
        asked = [chatml.render(row["prompt"]) for row in self.asked_texts]
        return list(zip(asked, self.after["answers"]))[: rl_report.SHOWN] if hasattr(self, "after") else []

    # ---- words ----

    def line(self, numbers: dict) -> list[str]:
        return [
            f"score {numbers['score']:+.3f}",
            f"KL {numbers['kl']:.2f}",
            f"length {numbers['length']:.0f}",
            f"entropy {numbers['entropy']:.2f}",
        ]

    def judged(self, metrics: dict[str, float]) -> str:
        return rl_report.judged(metrics, self._summary(self.before))

    def report(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        return rl_report.write(self, workdir, rows, metrics, self._summary(self.before))

    @property
    def pictures(self) -> tuple[str, ...]:
        return ("curves.png",)

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [("talk to it", f"python -m qwenjax.chat --model={workdir}")]
