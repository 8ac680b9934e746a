"""Checkpoints: Orbax, asynchronous, resharded on load, and verified.

A checkpoint is self-contained: parameters, optimizer and training state, the experiment, the tokenizer and a hash of
every array. Orbax finalises a step atomically, but it does not notice a flipped bit. Therefore hashes are taken on the
device when saving, and compared after restoring. A damaged step is set aside, and the newest sound one is used.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from qwenjax.common import storage

VERSION = 1
STATE = "rest"  # folder of the training state in a checkpoint: everything but the parameters


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; nothing after the last complete one is safe."""


class Restored(NamedTuple):
    step: int
    params: Any
    train_state: Any  # steps and optimizer; None when only parameters were asked for
    meta: dict  # what `save` was given (next_row, experiment, …), and the tokenizer: file name -> base64


@jax.jit
def hashes(tree: Any) -> Any:
    """Two uint32 sums per leaf over (bits, index): exact integer arithmetic, which does not depend on the sharding.

    Each word is mixed with its index before it is added (finaliser constants of splitmix/murmur), so that swapped,
    moved and flipped values all change the sum.
    """

    def mix(h):
        h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
        h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
        return h ^ (h >> 16)

    def one(x):
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
        index = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):  # row-major position, without reshaping a sharded array
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        first = mix(words + jnp.uint32(0x9E3779B9) * (index + 1))
        return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(mix(first ^ index), dtype=jnp.uint32)])

    return jax.tree.map(one, tree)


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every floating-point value of a tree is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


class Checkpoints:
    """The checkpoints of one run, in `directory`/STEP/."""

    def __init__(self, directory: Path | str, keep: int = 3, keep_every: int = 0):
        self.directory = storage.absolute(directory)  # as Orbax wants it
        self.damaged: list[str] = []  # a sentence about each damaged step
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Complete steps, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def save(self, step: int, params: Any, train_state: Any, meta: dict, tokenizer_dir: Path) -> None:
        """Copies the state, then writes it in the background.

        Raises:
          SaveFailed: the save before this one failed.
          FloatingPointError: a value of the state is not finite; nothing is written.
        """
        with self._explained():
            self.manager.check_for_errors()
        if not all_finite((params, train_state)):
            raise FloatingPointError(f"the state of step {step} holds NaN or infinite values; it was not saved")
        tree = {"params": params, STATE: train_state}
        meta = {
            **meta,
            "version": VERSION,
            "step": step,
            "shapes": _shapes(tree),
            "hashes": _hex(hashes(tree)),
            "tokenizer": {f.name: base64.b64encode(f.read_bytes()).decode() for f in sorted(tokenizer_dir.iterdir())},
        }
        meta["digest"] = digest(meta)
        with self._explained():
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    **{STATE: ocp.args.StandardSave(train_state)},
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def wait(self) -> None:
        """Returns when the last save is complete; raises SaveFailed if it failed."""
        with self._explained():
            self.manager.wait_until_finished()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Makes SaveFailed of any error: Orbax and the stores below it raise many kinds."""
        try:
            yield
        except Exception as error:
            complete = ocp.utils.checkpoint_steps(self.directory)
            newest = f"the newest complete one is step {max(complete)}" if complete else "there is no complete one yet"
            raise SaveFailed(
                f"could not write a checkpoint under {self.directory}: {_short(error)}; {newest}. "
                "Check disk space and permissions, then run the same command again"
            ) from error

    def restore(self, params: Any, train_state: Any) -> Restored | None:
        """The newest sound checkpoint, in the shapes and shardings of these ShapeDtypeStructs; None if there is none.

        Newer steps that are not what was saved are moved to the folder `damaged/` and noted in `self.damaged`.

        Raises:
          ValueError: the checkpoint has other shapes, or all are damaged. These stay where they are: only the user can
            decide to train from scratch instead.
        """
        broken: dict[int, str] = {}
        for step in self.steps():
            try:
                restored = load(self.directory / str(step), params, train_state)
            except Damaged as error:
                broken[step] = str(error)
                continue
            self.damaged = [f"step {step} is damaged and was set aside; {why}" for step, why in broken.items()]
            self._set_aside(list(broken))
            return restored
        if broken:
            listed = "\n  ".join(f"step {step}: {why}" for step, why in broken.items())
            raise ValueError(
                f"all checkpoints in {self.directory} are damaged:\n  {listed}\n"
                "They were left in place. Move the folder away to start from scratch"
            )
        return None

    def forget(self, after: int) -> None:
        """Deletes the checkpoints of steps beyond `after`. The newest goes first, so that a kill leaves no gap."""
        for step in self.steps():
            if step > after:
                self.manager.delete(step)

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged steps to the folder `damaged/`."""
        for step in steps if jax.process_index() == 0 else []:
            target = self.directory.parent / "damaged" / str(step)
            while target.exists():  # an earlier damaged one keeps its name
                target = target.with_name(target.name + "-again")
            storage.move(self.directory / str(step), target)
        if steps:
            multihost_utils.sync_global_devices(f"set aside {steps}")
        self.manager.reload()

    def close(self) -> None:
        """Waits for the last save, then closes."""
        self.wait()
        self.manager.close()


class Damaged(ValueError):
    """A checkpoint that differs from what was saved."""


def load(path: Any, params: Any, train_state: Any = None) -> Restored:
    """Reads and verifies one checkpoint directory into the given abstract trees (ShapeDtypeStructs with shardings).

    Raises:
      Damaged: unreadable, or not what was saved. ValueError: of another model or format.
    """
    path = storage.path(path)
    tree = {"params": params} if train_state is None else {"params": params, STATE: train_state}
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta = reader.restore(path / "meta")
        sound = meta.pop("digest") == digest(meta)
    except Exception as error:  # a broken file may raise anything
        raise Damaged(f"{path} is damaged: {_short(error)}") from error
    if not sound:
        raise Damaged(f"{path} is damaged: its description (meta) is not what was saved")
    if meta["version"] != VERSION:
        raise ValueError(f"{path} has checkpoint format {meta['version']}, this code reads {VERSION}")
    shapes, wanted = meta["shapes"], _shapes(tree)
    if train_state is None:
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("['params']")}
    for name in sorted({*shapes, *wanted}):
        there, here = shapes.get(name, "absent"), wanted.get(name, "absent")
        if there != here:
            raise ValueError(f"{path} is of another model or optimizer: {name} is {there} there, {here} here")
    try:
        with ocp.StandardCheckpointer() as reader:
            got = {name: reader.restore(path / name, target) for name, target in tree.items()}
    except Exception as error:  # likewise, from OCDBT and zarr
        raise Damaged(f"{path} is damaged: {_short(error)}") from error
    for leaf, value in _hex(hashes(got)).items():
        if meta["hashes"][leaf] != value:
            raise Damaged(f"{path} is damaged: {leaf} is not what was saved")
    return Restored(meta["step"], got["params"], got.get(STATE), meta)


def newest(path: Path | str) -> Path:
    """The newest checkpoint of a run or of its `checkpoints/` folder; the folder of one step is returned as it is."""
    path = storage.absolute(path)
    if (path / "meta").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        raise ValueError(f"no checkpoint in {path}: wanted a run, its checkpoints folder or one step of it")
    return folder / str(max(steps))


def _flat(tree: Any) -> dict[str, Any]:
    """Leaf path -> leaf."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _shapes(tree: Any) -> dict[str, list]:
    """Leaf path -> [*shape, dtype]."""
    return {path: [*leaf.shape, str(leaf.dtype)] for path, leaf in _flat(tree).items()}


def _hex(sums: Any) -> dict[str, str]:
    """Leaf path -> its hash in hexadecimal."""
    return {path: f"{int(h[0]):08x}{int(h[1]):08x}" for path, h in _flat(jax.device_get(sums)).items()}


def fingerprint(tree: Any) -> str:
    """16 hexadecimal digits that identify a tree of arrays, whatever its sharding."""
    return digest(_hex(hashes(tree)))[:16]


def digest(meta: dict) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _short(error: BaseException) -> str:
    """The error in one line, shortened in the middle: the reason is usually at the end."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: " + (text if len(text) <= 400 else f"{text[:120]} … {text[-260:]}")
