"""Reward models (report §3.2.1): preference-model pretraining (PMP), and the reward model proper from it.

Both are this task, on other data: pairs or ranked lists of responses, a scalar at each one's end token, the pairwise
loss. What is stored with the weights makes scores of mean 0 and deviation 1 on responses of the training files.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax import telemetry
from qwenjax.config import Experiment
from qwenjax.data.batches.preferences import ListMixture, validation_lists
from qwenjax.data.conversations.encode import Encoding
from qwenjax.eval import accuracy
from qwenjax.model import reward_head
from qwenjax.objectives import preference
from qwenjax.telemetry import Panel
from qwenjax.train import step as steps
from qwenjax.train.backbone import Loaded
from qwenjax.train.task import Task


class Lists(Task):
    """A stage that reads rated responses, some to each prompt."""

    def prepare(self, root: Path) -> list[str]:
        chat, data = self.experiment.chat, self.experiment.data
        self.tokenizer = self.load_tokenizer()
        files = self.open_files(Encoding(chat.loss_mask, data.seq_len, chat.truncate, "preference"), root)
        weights = [file.weight for file in chat.files]
        k = self.experiment.preference.responses
        self.mixture = ListMixture(files, weights, self.experiment.seed, chat.validation, k)
        self.read, self.names = self.mixture.batch, [Path(file.path).name for file in chat.files]
        size = data.batch_size // self.experiment.accumulate
        self.lists = validation_lists(files, data.eval_tokens, size, chat.validation, k)
        epochs = ", ".join(f"{n:.2f}" for n in self.mixture.epochs(self.experiment.steps * data.batch_size))
        held = sum(int(batch["real"].any(axis=1).sum()) for batch in self.lists)
        said = [line for file in files for line in file.lines()] + self.mixture.lines()
        said.append(f"this run reads {epochs} epochs; it is judged on {held:,} held-out lists")
        return [f"data        {line}" for line in said]

    rewards: Callable  # (trained, frozen, batch) -> float32 [b k], jitted

    def judge(self, state: steps.State) -> list[accuracy.ScoredPair]:
        """Every held-out pair as the model in training scores it."""
        pairs = []
        with jax.set_mesh(self.mesh):
            for batch in self.lists:
                placed = self._place(batch, self.program.batch)
                found = np.asarray(self.rewards(state.params, state.frozen, placed))
                pairs += accuracy.pairs(found, batch["ratings"], batch["real"], batch["file"])
        return pairs

    def evaluate(self, state: steps.State) -> dict[str, float]:
        self.pairs = self.judge(state)
        how = self.experiment.preference
        return accuracy.numbers(self.pairs, how.margin, how.smoothing)

    def summary_line(self, metrics: dict[str, float]) -> str:
        return (
            f"held-out loss {metrics['eval_loss']:.4f}, accuracy {metrics['eval_accuracy']:.1%} of {len(self.pairs):,} "
            "pairs"
        )

    def report(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        panels = [
            Panel("loss", "pairwise loss", ("loss", "eval_loss"), {"chance": float(np.log(2))}),
            Panel("held-out pairs", "in the right order", ("eval_accuracy",), {"chance": 0.5}),
        ]
        telemetry.plot(rows, workdir / "loss.png", panels)
        return ["![loss](loss.png)", "", *accuracy.table(self.pairs, self.names)]


class Reward(Lists):
    """A reward model, judged by how many held-out pairs it puts in the right order."""

    headline = "eval_accuracy"
    has_lm_head = False

    def __init__(self, experiment: Experiment, mesh: Mesh):
        if "head" in experiment.lora.modules_to_save:
            raise ValueError("lora.modules_to_save names the head, and a reward model has none: leave it out")
        super().__init__(experiment, mesh)
        backbone = self.backbone

        def parts(key):
            trained, frozen = backbone.random(key)
            head = reward_head.init_head(backbone.cfg, jax.random.fold_in(key, 1))
            return {"backbone": trained, "reward": head}, frozen

        def score(network, trained, frozen, batch, rng):
            shape = batch["end"].shape
            tokens, positions = (batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "positions"))
            collections = backbone.variables(trained["backbone"], frozen)
            rngs = backbone.rngs(network, rng)
            end = batch["end"].reshape(-1)
            return reward_head.scores(network, collections, trained["reward"], tokens, positions, end, rngs).reshape(
                shape
            )

        def loss_fn(trained, frozen, batch, rng):
            found = score(backbone.network, trained, frozen, batch, rng)
            margin = experiment.preference.margin
            lists = jax.vmap(lambda s, r, real: preference.ranked_loss(s, r, real, margin))
            total, weight = lists(found, batch["ratings"], batch["real"])
            return jnp.sum(total), jnp.sum(weight)

        self.program = steps.build(experiment, loss_fn, mesh, batch_shapes(experiment), parts)
        self.rewards = jax.jit(
            lambda trained, frozen, batch: score(backbone.plain, trained, frozen, batch, None),
            out_shardings=self.program.shardings.step,  # whole in every process
        )

    def joined(self, found: Loaded) -> tuple[dict, object]:
        key = jax.random.fold_in(jax.random.key(self.experiment.seed), 1)
        head = found.scorer.head if found.scorer else reward_head.init_head(self.backbone.cfg, key).value
        return {"backbone": found.trained, "reward": head}, found.frozen

    def saved(self, state: steps.State) -> dict:
        """Gain and bias by which scores of responses of the training files have mean 0 and deviation 1."""
        seen, size = [], self.experiment.data.batch_size // self.experiment.accumulate
        with jax.set_mesh(self.mesh):
            for first in range(0, self.experiment.preference.calibrate, size):
                batch = self.mixture.batch(np.arange(first, first + size))
                found = np.asarray(self.rewards(state.params, state.frozen, self._place(batch, self.program.batch)))
                seen.append(found[batch["real"]])
        seen = jnp.asarray(np.concatenate(seen))
        gain, bias = preference.calibration(seen, jnp.ones(seen.shape, bool))
        return super().saved(state) | {"calibration": [float(gain), float(bias)]}

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [
            ("its accuracy on other preferences", f"python -m qwenjax.eval --model={workdir} --table=4 --data FILE"),
            (
                "the best of several answers",
                f"python -m qwenjax.generate --model=POLICY --reward={workdir} --best-of=8 --temperature=1 PROMPT",
            ),
            (
                "a policy that learns from it (docs/alignment.md)",
                f"python -m qwenjax.train --exp=tiny_ppo --set init_from=POLICY --set rl.reward={workdir} "
                "--set chat.files.0.path=PROMPTS",
            ),
        ]


def batch_shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of one step's batch: lists of k responses."""
    b, k, length = experiment.data.batch_size, experiment.preference.responses, experiment.data.seq_len
    names = {
        "tokens": ((b, k, length), np.int32),
        "positions": ((b, k, length), np.int32),
        "mask": ((b, k, length), np.float32),
        "end": ((b, k), np.int32),
        "ratings": ((b, k), np.float32),
        "real": ((b, k), np.bool_),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in names.items()}
