"""Parameters from a checkpoint checkpoint: tensor by tensor from the file into sharded arrays.

Layers are stacked in our arrays and apart in the files. The stacked arrays are made empty, in their shards, and layer
after layer is written into them on the devices. What the host holds beside them is the blocks of one layer (or of the
embeddings) and one tensor as stored.
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

# Buffers that older files carry beside the weights (spec §3.3).
IGNORED = re.compile(r"(\.attn\.masked_bias|\.rotary_emb\.inv_freq)$")


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict:
    """Where each parameter of a model lives on a mesh: the tree that `load_params` and training take.

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
      progress: told after each tensor how many bytes of the file it had (`total_bytes` is their sum).
    Raises:
      ValueError: tensors that are missing, left over, of the wrong shape or no floating-point numbers, by name; before
        anything is read.
    """
    table = Table(checkpoint.config, checkpoint.layout)
    zeros = check(checkpoint, table)
    target = np.dtype(dtype)
    places = {row.ours: _at(shardings, row.ours) for row in table.rows}
    shapes = {row.ours: (checkpoint.config.layers, *table.ours_shape(row)) for row in table.rows if row.stacked}
    out = None if shardings is None else {path: places[path] for path in shapes}

    def put(stacked: dict, layer: dict, number: jax.Array) -> dict:
        return {path: x.at[number].set(layer[path]) for path, x in stacked.items()}

    put = jax.jit(put, donate_argnums=0, out_shardings=out)  # in the same memory
    stacked = jax.jit(lambda: {path: jnp.zeros(shape, target) for path, shape in shapes.items()}, out_shardings=out)()
    single = {}
    for number, named in itertools.groupby(table.parts.items(), key=lambda item: item[1][0].layer):
        pieces = {}
        for name, parts in named:
            stored = checkpoint.tensors[name].read()
            for part in parts:
                pieces[part.row.ours] = _piece(table, part, stored, places[part.row.ours], target)
            progress(stored.nbytes)
        if number is None:
            single = pieces
        else:
            stacked = jax.block_until_ready(put(stacked, pieces, number))  # or layers pile up before the devices
    for name in zeros:
        if checkpoint.tensors[name].read().any():
            raise ValueError(f"the checkpoint has {name!r}, a bias that our model lacks, and it is not zero")
    return _tree(single | stacked)


def total_bytes(checkpoint: HubCheckpoint) -> int:
    """Bytes that `load_params` will read, for a progress bar."""
    tensors = (checkpoint.tensors[name] for name in Table(checkpoint.config, checkpoint.layout).parts)
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in tensors)


def check(checkpoint: HubCheckpoint, table: Table) -> list[str]:
    """Compares the tensors that are there with those that the model needs, by descriptor.

    Returns: names of biases that the model lacks, which must turn out to be zero: some writers, those of GPTQ among
      them, give every projection one.
    Raises:
      ValueError: see `load_params`.
    """
    there = checkpoint.tensors
    wrong = []
    if missing := [name for name in table.parts if name not in there]:
        wrong.append(f"{len(missing)} missing: {_few(missing)}")
    extra = [name for name in there if name not in table.parts and not IGNORED.search(name)]
    if checkpoint.config.tie_embeddings:
        extra = [name for name in extra if name != "lm_head.weight"]  # a copy of the input embedding
    zeros = [name for name in extra if name.endswith(".bias") and f"{name[:-5]}.weight" in table.parts]
    if left := [name for name in extra if name not in zeros]:
        wrong.append(f"{len(left)} left over: {_few(left)}")
    shapes = [
        f"{name} {list(there[name].shape)} instead of {list(table.shape(name))}"
        for name in table.parts
        if name in there and tuple(there[name].shape) != table.shape(name)
    ]
    if shapes:
        wrong.append(f"{len(shapes)} of another shape than the config says: {_few(shapes)}")
    kinds = [
        f"{name} is {there[name].dtype}"
        for name in table.parts
        if name in there and not jnp.issubdtype(there[name].dtype, jnp.floating)
    ]
    if kinds:
        wrong.append(f"{len(kinds)} of a dtype that is no floating point: {_few(kinds)}")
    if wrong:
        raise ValueError(f"the tensors are not those of the config ({checkpoint.layout} layout): {'; '.join(wrong)}")
    return zeros


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _piece(table: Table, part: TensorPart, stored: np.ndarray, place: Sharding | None, dtype: np.dtype) -> jax.Array:
    """One layer of a parameter on the devices, each of which is given its own block."""
    view = table.to_ours(part, stored)
    if place is None:
        return jax.device_put(_block(view, dtype))
    if part.row.stacked:
        place = _layer_sharding(place)
    return jax.make_array_from_callback(view.shape, place, lambda at: _block(view[at], dtype))


def _block(view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A dense copy: the tensor may be forgotten while the devices still read."""
    return np.array(view, dtype, order="C")


def _layer_sharding(place: Sharding) -> Sharding:
    """Of one layer of a stacked array."""
    if isinstance(place, NamedSharding):
        return NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    return place


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
