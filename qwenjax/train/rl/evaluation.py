"""Judging a policy: its answers to held-out prompts, beside those of the policy that the run began with."""

from typing import Any

import jax
import numpy as np

from qwenjax.generate.rollout import Rollout
from qwenjax.tokenizer import Tokenizer
from qwenjax.train.rl.models import Models
from qwenjax.train.rl.programs import Programs
from qwenjax.train.step import State, StepProgram


class Texts:
    """From rollouts to texts, wherever their tokens lie."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[int, ...], program: StepProgram):
        self.tokenizer, self.stops = tokenizer, stops
        self._whole = jax.jit(lambda x: x, out_shardings=program.shardings.step)

    def whole(self, x: jax.Array) -> np.ndarray:
        """A global array, in every process."""
        return np.asarray(self._whole(x))

    def of(self, rolled: Rollout) -> list[str]:
        """The responses, without what stopped them."""
        tokens, mask = self.whole(rolled.tokens), self.whole(rolled.mask)
        return [
            self.tokenizer.decode([token for token in row[real].tolist() if token not in self.stops])
            for row, real in zip(tokens, mask)
        ]


class ResponseEvaluation:
    """Held-out prompts, and the last answers to them.

    Args:
      asked: `tokens` [n p] and `lengths` [n]. rows: {"prompt": turns, "answer": text or None} of each.
    """

    def __init__(self, asked: dict[str, np.ndarray], rows: list[dict], models: Models, texts: Texts, mesh, seed: int):
        self.rows, self.models, self.texts, self.mesh = rows, models, texts, mesh
        split = mesh.shape["data"] * mesh.shape["fsdp"]
        self._fill = np.arange(-(-len(rows) // split) * split) % len(rows)
        self._asked = asked["tokens"][self._fill], asked["lengths"][self._fill]
        self._seeds = np.arange(len(self._fill), dtype=np.uint32) + np.uint32(seed)
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.step = -1  # of the state that `after` is of

    @property
    def prompts(self) -> list[str]:
        """What the model was asked, as it reads it."""
        tokens, lengths = self._asked
        return [self.texts.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, lengths)][: len(self.rows)]

    def run(self, run: Programs, state: State) -> dict[str, float]:
        """Answers the prompts and judges the answers; the metrics. The state stays as it is."""
        with jax.set_mesh(self.mesh):
            if not self.before:
                rolled = run.sample_reference(state.frozen, *self._asked, self._seeds)
                self.before = self._judged(rolled, run.evaluate_reference(state.frozen, rolled))
            rolled = run.sample(state.params, state.frozen, *self._asked, self._seeds)
            self.after = self._judged(rolled, run.evaluate_responses(state.params, state.frozen, rolled))
        self.step = int(state.step)
        return summary(self.after)

    def _judged(self, rolled: Rollout, seen: dict[str, jax.Array]) -> dict[str, Any]:
        """Arrays [n] by name, and `answers`."""
        answers, n = self.texts.of(rolled), len(self.rows)
        found = {name: self.texts.whole(x) for name, x in seen.items()}
        for name, function in self.models.functions.items():
            found[name] = function([self.rows[i] for i in self._fill], answers)
        return {name: x[:n] for name, x in found.items()} | {"answers": answers[:n]}


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Means over the answers, under the names of metrics.jsonl; scores over those that ended, if any did."""
    names = {"reward": "eval_score", "gold_reward": "eval_gold"}
    some = found["ended"] if found["ended"].any() else slice(None)
    means = {f"eval_{name}": float(np.mean(x)) for name, x in found.items() if name not in ("answers", *names)}
    means |= {name: float(np.mean(found[key][some])) for key, name in names.items() if key in found}
    return means | {"eval_unique": len(set(found["answers"])) / len(found["answers"])}
