"""Where a run starts: whose workdir it is, and the state and rows it goes on from."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from qwenjax import checkpoint, config
from qwenjax.common import storage
from qwenjax.common.jsonl import read_rows
from qwenjax.config import Experiment
from qwenjax.train.step import State
from qwenjax.train.task import Task

# Fields that may change between the two halves of a resumed run, as they do not change what is learned.
FREE = {"log_every", "eval_every", "sample_every", "save_every", "keep", "keep_every", "prompts"}
FREE |= {"mesh", "compute", "recovery"}


def restore(task: Task, checkpoints: checkpoint.Checkpoints, say: Callable[[str], None]) -> tuple[State, dict]:
    """The state that a run goes on from, and the meta saved with it ({} at the start).

    This is the run's own newest complete checkpoint; without one `init_from`; without that random parameters.
    """
    abstract = task.program.abstract_state()
    restored = checkpoints.restore(abstract.params, {"step": abstract.step, "opt_state": abstract.opt_state})
    for problem in checkpoints.damaged:
        say(f"checkpoint  {problem}")
    if not restored:
        return task.first_state(say), {}
    task.check_tokenizer(restored.meta["tokenizer_fingerprint"], checkpoints.directory)
    say(f"resuming    from step {restored.step}, row {restored.meta['next_row']:,}")
    saved, frozen = restored.train_state, task.load_frozen(restored.meta)
    return State(saved["step"], restored.params, saved["opt_state"], frozen), restored.meta


def claim(workdir: Path, experiment: Experiment) -> None:
    """Writes config.json, or checks that the one there is of the same run. A run that made no step may be replaced.

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
        storage.write_json(path, config.to_dict(experiment))


def _began(workdir: Path) -> bool:
    """Whether a run came as far as its first step; before that, other settings lose nothing."""
    return bool(storage.files(workdir / "checkpoints")) or bool(read_rows(workdir / "events.jsonl"))


def _differences(old, new) -> Iterator[tuple]:
    if isinstance(old, dict) and isinstance(new, dict):
        for k in new:
            if old.get(k) != new[k]:
                yield {k: old.get(k)}, {k: new[k]}
    else:
        yield old, new
