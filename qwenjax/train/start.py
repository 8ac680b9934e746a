"""Where a run starts: whose workdir it is, and the state and rows it goes on from."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from qwenjax import checkpoint, config, storage
from qwenjax.api.source import start_from
from qwenjax.config import Experiment
from qwenjax.jsonl import read_rows
from qwenjax.train.step import State

# What may change between the two halves of a resumed run without changing what is learned.
FREE = (
    "log_every",
    "eval_every",
    "sample_every",
    "save_every",
    "keep",
    "keep_every",
    "prompts",
    "mesh",
    "compute",
    "recovery",
)


def state(
    experiment: Experiment, task, checkpoints: checkpoint.Checkpoints, say: Callable[[str], None]
) -> tuple[State, dict]:
    """The run's own newest whole checkpoint, else `init_from`, else random parameters; and the meta saved with it."""
    program = task.program
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), program.shapes, program.shardings
    )
    rest = {"step": placed.step, "opt_state": placed.opt_state}
    restored = checkpoints.restore(placed.params, rest)
    for trouble in checkpoints.damaged:
        say(f"checkpoint  {trouble}")
    if restored:
        _same_tokenizer(restored.meta["tokenizer_fingerprint"], task.tokenizer, checkpoints.directory)
        say(f"resuming    from step {restored.step}, row {restored.meta['next_row']:,}")
        return State(restored.rest["step"], restored.params, restored.rest["opt_state"]), restored.meta
    if experiment.init_from:
        params, tokenizer, differing = start_from(experiment.init_from, experiment.model, program.shardings.params)
        if tokenizer is not None:
            _same_tokenizer(tokenizer.fingerprint, task.tokenizer, experiment.init_from)
        say(f"starting    from the parameters of {experiment.init_from}")
        for difference in differing:
            say(f"            {difference}")
        return program.start(params), {}
    return program.init(), {}


def _same_tokenizer(fingerprint: str, tokenizer, path) -> None:
    if fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"{path} was trained with another tokenizer than {tokenizer.name} "
            f"({fingerprint[:12]}… there, {tokenizer.fingerprint[:12]}… here): "
            "its ids mean other text"
        )


def claim(workdir: Path, experiment: Experiment) -> None:
    """Writes config.json, or checks that the one there is of the same run. One that never began is no run yet.

    Raises:
      ValueError: the workdir belongs to another experiment; the differing fields are named.
    """
    path = workdir / "config.json"
    if path.exists() and _began(workdir):
        old = config.to_dict(config.from_dict(json.loads(path.read_text())))
        new = config.to_dict(experiment)
        differing = [k for k in new if k not in FREE and old[k] != new[k]]
        if differing:
            listed = "\n  ".join(
                f"{k}: {a!r} there, {b!r} now" for k in differing for a, b in _differences(old[k], new[k])
            )
            raise ValueError(
                f"{workdir} holds another experiment ({old['name']}):\n  {listed}\n"
                f"Use another --workdir, or start from its parameters with --set init_from={workdir}"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        storage.write(path, json.dumps(config.to_dict(experiment), indent=2) + "\n")


def _began(workdir: Path) -> bool:
    """Whether a run came as far as its first step; before that, nothing is lost by other settings."""
    return bool(storage.files(workdir / "checkpoints")) or bool(read_rows(workdir / "events.jsonl"))


def _differences(old, new) -> Iterator[tuple]:
    if isinstance(old, dict) and isinstance(new, dict):
        for k in new:
            if old.get(k) != new[k]:
                yield {k: old.get(k)}, {k: new[k]}
    else:
        yield old, new
