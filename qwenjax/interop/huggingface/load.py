"""Parameters of a `HubCheckpoint`: tensor by tensor from the files into sharded arrays.

Our arrays have all layers stacked. They are allocated in their shards, and the devices write one layer after another
into them. The host holds one layer (or the embeddings) and one stored tensor at a time.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from qwenjax import sharding
from qwenjax.config import ModelConfig
from qwenjax.interop import HubCheckpoint
from qwenjax.interop.huggingface.layout import Table
from qwenjax.model import transformer

# Buffers in older files (docs/report.md, Checkpoint layout)
HEAD = "lm_head.weight"
IGNORED = re.compile(r"(\.attn\.masked_bias|\.rotary_emb\.inv_freq)$")


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict:
    """The sharding of each parameter of a model on a mesh. Raises ValueError if an axis does not divide over it."""
    boxed = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    specs, shapes = nn.get_partition_spec(boxed), nn.unbox(boxed)
    return jax.tree.map(lambda x, names: sharding.sharding(mesh, tuple(names), x.shape), shapes, specs)


def load_params(
    checkpoint: HubCheckpoint,
    shardings: dict | None = None,
    dtype: Any = np.float32,
    progress: Callable[[int], None] = lambda read: None,
) -> dict:
    """The parameters of a checkpoint, as `transformer.init_params` names and shapes them.

    Args:
      shardings: tree of `param_shardings`; None puts everything on the default device.
      dtype: of the parameters; casting happens on the host, value by value.
      progress: called after each tensor with its bytes in the file (`total_bytes` is their sum).
    Raises:
      ValueError: see `check`; raised before anything is read.
    """
    table = Table(checkpoint.config, checkpoint.layout)
    zeros = check(checkpoint, table)
    target = np.dtype(dtype)
    where = flatten_dict(shardings or {}, sep="/")
    layers = checkpoint.config.layers
    shapes = {entry.ours: (layers, *table.ours_shape(entry)) for entry in table.entries if entry.stacked}
    out = {path: where[path] for path in shapes} if where else None
    for path, x in (out or {}).items():  # of one layer
        where[path] = NamedSharding(x.mesh, PartitionSpec(*x.spec[1:])) if isinstance(x, NamedSharding) else x

    def put(stacked: dict, layer: dict, number: jax.Array) -> dict:
        return {path: x.at[number].set(layer[path]) for path, x in stacked.items()}

    put = jax.jit(put, donate_argnums=0, out_shardings=out)  # in place
    stacked = jax.jit(lambda: {path: jnp.zeros(shape, target) for path, shape in shapes.items()}, out_shardings=out)()
    single = {}
    for number, named in itertools.groupby(table.parts.items(), key=lambda item: item[1][0].layer):
        layer = {}
        for name, parts in named:
            stored = checkpoint.tensors[name].read()
            for part in parts:
                path = part.entry.ours
                layer[path] = _on_devices(table.to_ours(part, stored), where.get(path), target)
            progress(stored.nbytes)
        if number is None:
            single = layer
        else:
            stacked = jax.block_until_ready(put(stacked, layer, number))  # else layers queue up in memory
    if checkpoint.config.tie_embeddings and HEAD in checkpoint.tensors:
        _check_copy(checkpoint, table)
    for name in zeros:
        if checkpoint.tensors[name].read().any():
            raise ValueError(f"the checkpoint has {name!r}, a bias that our model does not have, and it is not zero")
    return unflatten_dict(single | stacked, sep="/")


def total_bytes(checkpoint: HubCheckpoint) -> int:
    """Bytes that `load_params` will read, for a progress bar."""
    names = Table(checkpoint.config, checkpoint.layout).parts.keys() & checkpoint.tensors.keys()
    return sum(checkpoint.tensors[name].nbytes for name in names)


def check(checkpoint: HubCheckpoint, table: Table) -> list[str]:
    """Raises ValueError for tensors that are missing, left over, of another shape or not floating point; reads none.

    Returns: names of biases that the model does not have and that must be zero: GPTQ gives one to every projection.
    """
    tensors = checkpoint.tensors
    needed = {name: tensors[name] for name in table.parts if name in tensors}
    extra = [name for name in tensors if name not in needed and not IGNORED.search(name)]
    if checkpoint.config.tie_embeddings:
        extra = [name for name in extra if name != HEAD]  # a copy of the input embedding
    zeros = [name for name in extra if name.endswith(".bias") and f"{name[:-5]}.weight" in table.parts]
    wrong = {
        "missing": [name for name in table.parts if name not in tensors],
        "left over": [name for name in extra if name not in zeros],
        "of another shape than the config says": [
            f"{name} {list(tensor.shape)} instead of {list(table.shape(name))}"
            for name, tensor in needed.items()
            if tuple(tensor.shape) != table.shape(name)
        ],
        "of a dtype that is not floating point": [
            f"{name} is {tensor.dtype}"
            for name, tensor in needed.items()
            if not jnp.issubdtype(tensor.dtype, jnp.floating)
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{len(names)} {what}: {few(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"the tensors are not those of the config ({checkpoint.layout} layout): {listed}")
    return zeros


def _check_copy(checkpoint: HubCheckpoint, table: Table) -> None:
    """Raises ValueError if the output embedding of a model that ties it is not the input embedding."""
    embed = next(entry.theirs for entry in table.entries if entry.ours == "embed")
    ours, theirs = checkpoint.tensors[embed].read(), checkpoint.tensors[HEAD].read()
    if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
        raise ValueError(
            f"the config ties the embeddings, but {HEAD} is another matrix than {embed}: one of the two was trained "
            "apart; use --set tie_embeddings=false (tie_embeddings=False in Python) to load both"
        )


def few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _on_devices(view: np.ndarray, where: Sharding | None, dtype: np.dtype) -> jax.Array:
    """An array on the devices; each gets a dense copy of its own block: the stored tensor may be freed meanwhile."""
    if where is None:
        return jax.device_put(np.array(view, dtype, order="C"))
    return jax.make_array_from_callback(view.shape, where, lambda at: np.array(view[at], dtype, order="C"))
