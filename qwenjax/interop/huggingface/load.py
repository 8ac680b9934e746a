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
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from qwenjax import sharding
from qwenjax.config import ModelConfig
from qwenjax.interop import HubCheckpoint
from qwenjax.interop.huggingface.layout import Table, TensorPart
from qwenjax.model import transformer

# Buffers in older files (docs/report.md, Checkpoint layout)
IGNORED = re.compile(r"(\.attn\.masked_bias|\.rotary_emb\.inv_freq)$")


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict:
    """The sharding of each parameter of a model on a mesh: the tree for `load_params` and training.

    Raises:
      ValueError: an axis that does not divide over the mesh.
    """
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
      ValueError: tensors that are missing, left over, of the wrong shape or not floating point, by name; raised
        before anything is read.
    """
    table = Table(checkpoint.config, checkpoint.layout)
    zeros = check(checkpoint, table)
    target = np.dtype(dtype)
    where = {entry.ours: _at(shardings, entry.ours) for entry in table.entries}
    layers = checkpoint.config.layers
    shapes = {entry.ours: (layers, *table.ours_shape(entry)) for entry in table.entries if entry.stacked}
    out = None if shardings is None else {path: where[path] for path in shapes}

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
                layer[part.entry.ours] = _piece(table, part, stored, where[part.entry.ours], target)
            progress(stored.nbytes)
        if number is None:
            single = layer
        else:
            stacked = jax.block_until_ready(put(stacked, layer, number))  # else layers queue up in memory
    for name in zeros:
        if checkpoint.tensors[name].read().any():
            raise ValueError(f"the checkpoint has {name!r}, a bias that our model does not have, and it is not zero")
    return _tree(single | stacked)


def total_bytes(checkpoint: HubCheckpoint) -> int:
    """Bytes that `load_params` will read, for a progress bar."""
    tensors = (checkpoint.tensors[name] for name in Table(checkpoint.config, checkpoint.layout).parts)
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in tensors)


def check(checkpoint: HubCheckpoint, table: Table) -> list[str]:
    """Compares the checkpoint's tensors with those that the model needs, without reading them.

    Returns: names of biases that the model does not have. They must be zero: some writers (GPTQ) give every
      projection a bias.
    Raises:
      ValueError: see `load_params`.
    """
    there = checkpoint.tensors
    wrong = []
    if missing := [name for name in table.parts if name not in there]:
        wrong.append(f"{len(missing)} missing: {few(missing)}")
    extra = [name for name in there if name not in table.parts and not IGNORED.search(name)]
    if checkpoint.config.tie_embeddings:
        extra = [name for name in extra if name != "lm_head.weight"]  # a copy of the input embedding
    zeros = [name for name in extra if name.endswith(".bias") and f"{name[:-5]}.weight" in table.parts]
    if left := [name for name in extra if name not in zeros]:
        wrong.append(f"{len(left)} left over: {few(left)}")
    shapes = [
        f"{name} {list(there[name].shape)} instead of {list(table.shape(name))}"
        for name in table.parts
        if name in there and tuple(there[name].shape) != table.shape(name)
    ]
    if shapes:
        wrong.append(f"{len(shapes)} of another shape than the config says: {few(shapes)}")
    kinds = [
        f"{name} is {there[name].dtype}"
        for name in table.parts
        if name in there and not jnp.issubdtype(there[name].dtype, jnp.floating)
    ]
    if kinds:
        wrong.append(f"{len(kinds)} of a dtype that is not floating point: {few(kinds)}")
    if wrong:
        raise ValueError(f"the tensors are not those of the config ({checkpoint.layout} layout): {'; '.join(wrong)}")
    return zeros


def few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _piece(table: Table, part: TensorPart, stored: np.ndarray, where: Sharding | None, dtype: np.dtype) -> jax.Array:
    """One layer of a parameter on the devices; each device gets its own block."""
    view = table.to_ours(part, stored)
    if where is None:
        return jax.device_put(_block(view, dtype))
    if part.entry.stacked:
        where = _layer_sharding(where)
    return jax.make_array_from_callback(view.shape, where, lambda at: _block(view[at], dtype))


def _block(view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A dense copy: the stored tensor may be freed while the devices still read."""
    return np.array(view, dtype, order="C")


def _layer_sharding(stacked: Sharding) -> Sharding:
    """The sharding of one layer of a stacked array."""
    if isinstance(stacked, NamedSharding):
        return NamedSharding(stacked.mesh, PartitionSpec(*stacked.spec[1:]))
    return stacked


def _at(tree: dict | None, path: str) -> Any:
    if tree is None:
        return None
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _tree(flat: dict[str, Any]) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
