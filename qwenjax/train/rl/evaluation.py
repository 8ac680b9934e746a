"""Evaluation on held-out prompts: responses of the policy, compared with those of the policy the run started from."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwenjax.generate.rollout import Rollout
from qwenjax.tokenizer import Tokenizer
from qwenjax.train.rl.programs import Programs
from qwenjax.train.step import State


def gather(x: jax.Array) -> np.ndarray:
    """All of a global array, in every process."""
    return multihost_utils.process_allgather(x, tiled=True)


def decode(rollout: Rollout, tokenizer: Tokenizer, stops: tuple[int, ...]) -> list[str]:
    """The texts of all responses, in every process, without their stop tokens."""
    tokens, mask = gather(rollout.tokens), gather(rollout.mask)
    responses = [ids[is_response].tolist() for ids, is_response in zip(tokens, mask)]
    return [tokenizer.decode([token for token in ids if token not in stops]) for ids in responses]


class ResponseEvaluation:
    """Held-out prompts and the latest responses to them.

    Args:
      task: the `RLTask`. prompts: `prompts` [n p] and `lengths` [n]; examples: of each, as the mixture gives them.
    Attributes:
      before, after: of the responses of the reference and of the policy: arrays [n] by name (`Iteration`'s, and
        scores of reward functions), and the texts as "answers".
      step: of the state that `after` belongs to; -1 if there is none yet.
    """

    def __init__(self, task, prompts: dict[str, np.ndarray], examples: list[dict]):
        self.task, self.examples = task, examples
        devices = task.mesh.shape["data"] * task.mesh.shape["fsdp"]
        # the first prompts are repeated until the batch divides over the devices
        self._index = np.arange(-(-len(examples) // devices) * devices) % len(examples)
        self._prompts = prompts["prompts"][self._index], prompts["lengths"][self._index]
        self._seeds = np.arange(len(self._index), dtype=np.uint32) + np.uint32(task.experiment.seed)
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.step = -1

    @property
    def prompts(self) -> list[str]:
        """The prompts as the model reads them."""
        tokens, lengths = self._prompts
        texts = [self.task.tokenizer.decode(ids[:n].tolist()) for ids, n in zip(tokens, lengths)]
        return texts[: len(self.examples)]

    def run(self, programs: Programs, state: State) -> dict[str, float]:
        """Samples responses and scores them; returns metrics."""
        with jax.set_mesh(self.task.mesh):
            if not self.before:
                rollout = programs["sample_reference"](state.frozen, *self._prompts, self._seeds)
                self.before = self._scored(rollout, programs["evaluate_reference"](state.frozen, rollout))
            rollout = programs["sample"](state.params, state.frozen, *self._prompts, self._seeds)
            self.after = self._scored(rollout, programs["evaluate_responses"](state.params, state.frozen, rollout))
        self.step = int(state.step)
        return summary(self.after)

    def _scored(self, rollout: Rollout, numbers: dict[str, jax.Array]) -> dict[str, Any]:
        """`before` or `after`: the given numbers, scores of reward functions, and texts."""
        answers, n = decode(rollout, self.task.tokenizer, self.task.stops), len(self.examples)
        arrays = {name: gather(x) for name, x in numbers.items()}
        for name, function in self.task.models.functions.items():
            arrays[name] = function([self.examples[i] for i in self._index], answers)
        return {name: x[:n] for name, x in arrays.items()} | {"answers": answers[:n]}


def summary(responses: dict[str, Any]) -> dict[str, float]:
    """Means over responses (`ResponseEvaluation.before` or `after`) under their names in metrics.jsonl.

    Scores are averaged over the responses that ended, if there are any.
    """
    scores = {"reward": "eval_score", "gold_reward": "eval_gold"}
    others = {name: x for name, x in responses.items() if name not in ("answers", *scores)}
    means = {f"eval_{name}": float(np.mean(x)) for name, x in others.items()}
    ended = responses["ended"] if responses["ended"].any() else slice(None)
    means |= {name: float(np.mean(responses[key][ended])) for key, name in scores.items() if key in responses}
    return means | {"eval_unique": len(set(responses["answers"])) / len(responses["answers"])}
