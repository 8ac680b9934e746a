"""Where the scores of responses come from: a reward model on the same mesh, or a Python function of texts."""

import importlib
import math
import runpy
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from qwenjax import storage
from qwenjax.api.reward import calibration, identity
from qwenjax.api.source import open_source
from qwenjax.config import Compute, ModelConfig
from qwenjax.model import reward, transformer
from qwenjax.train import step as steps
from qwenjax.train.rl.steps import Responses

# fn(prompts: lists of turns, responses: texts, answers: texts or None) -> one number for each response
Function = Callable[[Sequence[list], Sequence[str], Sequence[str | None]], Sequence[float]]


class Failed(RuntimeError):
    """A step could not be made, for a reason outside of the model; the state is as it was before."""


def is_function(spec: str) -> bool:
    """Whether `rl.reward` names a Python function rather than a model's path."""
    place, colon, name = spec.rpartition(":")
    return bool(colon) and name.isidentifier() and not storage.remote(spec) and not Path(spec).exists() and bool(place)


def load_function(spec: str) -> Function:
    """The function of 'FILE.py:NAME' or 'MODULE:NAME'.

    Raises:
      ValueError: there is none.
    """
    place, _, name = spec.rpartition(":")
    try:
        if place.endswith(".py"):
            found = runpy.run_path(place).get(name)
        else:
            found = getattr(importlib.import_module(place), name, None)
    except Exception as error:  # whatever a user's module does
        raise ValueError(f"rl.reward={spec}: {place} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"rl.reward={spec}: there is no function {name} in {place}")
    return found


def call(function: Function, spec: str, seconds: float, texts: Sequence[dict], answers: Sequence[str]) -> np.ndarray:
    """float32 scores [b] of responses `answers` to prompts `texts`.

    Raises:
      Failed: the function raises, hangs, or gives anything but one finite number each.
    """
    box: dict[str, Any] = {}

    def work():
        try:
            prompts, wanted = [row["prompt"] for row in texts], [row["answer"] for row in texts]
            box["scores"] = list(function(prompts, list(answers), wanted))
        except BaseException as error:  # of user code, to be told in the main thread
            box["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Failed(
            f"the reward function {spec} has not answered within rl.seconds={seconds:g}; raise that if it works"
        )
    if "error" in box:
        raise Failed(f"the reward function {spec} raises {type(box['error']).__name__}: {box['error']}")
    scores = box["scores"]
    if len(scores) != len(answers):
        raise Failed(f"the reward function {spec} gives {len(scores)} scores for {len(answers)} responses")
    for score, answer in zip(scores, answers):
        if isinstance(score, bool | int | float | np.number) and math.isfinite(score):
            continue
        raise Failed(
            f"the reward function {spec} gives {score!r}, not a finite number, for the response {answer!r:.200}"
        )
    return np.asarray(scores, np.float32)


def everywhere(compute: Callable[[], np.ndarray], count: int) -> np.ndarray:
    """What process 0 computes, on all of them; a failure there is a failure everywhere."""
    if jax.process_count() == 1:
        return compute()
    scores, failure = np.zeros(count, np.float32), None
    if jax.process_index() == 0:
        try:
            scores = compute()
        except Failed as error:
            failure = error
    told = multihost_utils.broadcast_one_to_all((scores, np.bool_(failure is not None)))
    if told[1]:
        raise failure or Failed("the reward function failed in process 0, which says how")
    return np.asarray(told[0])


class Judge(NamedTuple):
    """A reward model as frozen parameters of a run."""

    network: transformer.Transformer

    @classmethod
    def of(cls, path: str, model: ModelConfig, compute: Compute) -> "Judge":
        """That of a path; of the policy's shape, as the report's is, where there is nothing yet (for a plan)."""
        cfg = open_source(path).config if storage.path(path).exists() else model
        return cls(transformer.Transformer(reward.headless(cfg), compute))

    def random(self, key: jax.Array) -> dict:
        """Parameters of the right shapes, boxed with their logical axes, as `load` gives them."""
        params = transformer.init_params(self.network.cfg, key)
        held = jax.tree.map(lambda x: x.astype(self.network.compute.dtype), params)
        head = reward.init_head(self.network.cfg, key)
        return {"backbone": held, "reward": head, "gain": jnp.float32(1), "bias": jnp.float32(0)}

    def load(self, path: str, mesh: Mesh, check: Callable[[str, str], None]) -> tuple[dict, str]:
        """The frozen parameters, in the compute dtype and in their places, and the model's fingerprint.

        Args:
          check: told the tokenizer's fingerprint and the path; raises if it is another one.
        """
        source = open_source(path)
        places = steps.shardings(mesh, jax.eval_shape(self.random, jax.random.key(0)))
        params, head = source.scorer(places["backbone"])
        tokenizer = source.tokenizer()
        check(tokenizer.fingerprint, path)
        gain, bias = calibration(source)
        held = jax.tree.map(lambda x: x.astype(self.network.compute.dtype), params)
        rest = {"reward": head, "gain": jnp.float32(gain), "bias": jnp.float32(bias)}
        return {"backbone": held} | jax.device_put(rest, {name: places[name] for name in rest}), identity(source)

    def score(self, frozen: dict, read: Responses) -> jax.Array:
        """Calibrated scores [b] at the responses' last tokens; pure."""
        collections = {"params": frozen["backbone"]}
        raw = reward.scores(self.network, collections, frozen["reward"], read.tokens, read.positions, read.end)
        return frozen["gain"] * raw + frozen["bias"]
