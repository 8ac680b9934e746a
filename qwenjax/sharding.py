"""Where arrays live: one mesh, and the only table from logical axis names to mesh axes.

The model names axes ("batch", "heads", …), `RULES` maps names to mesh axes (`config.MeshShape`), and `jax.jit` with
in/out shardings partitions the program. `constrain` and `per_device` read the ambient mesh (`jax.set_mesh`) and are the
identity outside one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qwenjax.config import MeshShape

AXES = ("data", "fsdp", "tensor", "context")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "length": "context",
    "shards": ("data", "fsdp", "context"),  # one entry per block of tokens: partial sums on their way to a total
    # parameters; heads, ffn and vocab also name axes of activations
    "layers": None,
    "embed": "fsdp",
    "norm": None,  # norm scales are small and replicated
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ffn": "tensor",
    "vocab": "tensor",
}
# Grouped-query models may have fewer KV heads than tensor shards; then they are copied, not split.
COPY_IF_UNEVEN = {"kv_heads"}


def spec(
    *names: str | None, shape: tuple[int, ...] | None = None, mesh: Any = None, uneven: str = "raise"
) -> PartitionSpec:
    """The PartitionSpec of logical axis names; None is an axis that is never split.

    Raises:
      ValueError: a name without a rule (a typo would silently replicate 14B parameters), or, with `shape` and `mesh`
        given, a dimension that does not divide. With `uneven="replicate"` that one is not split.
    """
    unknown = [n for n in names if n is not None and n not in RULES]
    if unknown:
        raise ValueError(f"no sharding rule for {unknown}; known axes: {sorted(RULES)}")
    entries = [RULES[n] if n else None for n in names]
    if shape is not None:
        for i, (name, entry) in enumerate(zip(names, entries, strict=True)):
            axes = (entry,) if isinstance(entry, str) else entry or ()
            parts = math.prod(mesh.shape[a] for a in axes)
            if shape[i] % parts:
                if uneven == "raise" and name not in COPY_IF_UNEVEN:
                    over = " x ".join(f"{a}={mesh.shape[a]}" for a in axes)
                    raise ValueError(f"axis {name!r} of size {shape[i]} does not divide over {over}; change the mesh")
                entries[i] = None
    return PartitionSpec(*entries)


def sharding(mesh: Mesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """The sharding on `mesh` of an array with the given logical axes. Raises ValueError as `spec` does."""
    return NamedSharding(mesh, spec(*names, shape=shape, mesh=mesh))


def make_mesh(shape: MeshShape, embed: int, devices: list | None = None) -> Mesh:
    """The mesh over `devices` (default: all), in an order that keeps neighbours on fast links.

    TPU slices, joined by a slower network, are neighbours only along `data`: they exchange gradients, once a step.
    `embed` is the size of the parameter axis that fsdp splits.
    """
    devices = jax.devices() if devices is None else devices
    tpu = devices[0].platform == "tpu"  # on CPUs a slice would be a process
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpu else 1
    sizes = [shape.sizes(len(devices), embed, slices)[axis] for axis in AXES]
    if not tpu:
        grid = np.array(devices).reshape(sizes)
    elif slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    else:
        within, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    # not jax's default, Explicit axes: with these a matmul of split operands can raise an error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Makes the partitioner split `x` by its logical axes; the identity without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names, shape=x.shape, mesh=mesh, uneven="replicate"))


def per_device(f: Callable, in_names: tuple, out_names: tuple, keep: tuple[str, ...] = ()) -> Callable:
    """Runs `f` on every device, on the block that the device has of each argument (shard_map by logical names).

    Args:
      f: arrays -> tuple of arrays. For a total, it returns a partial sum with a leading axis "shards" of size 1.
      in_names, out_names: a tuple of logical axis names per array; a dimension named None is gathered.
      keep: mesh axes that the partitioner handles inside `f` ("tensor": a softmax over a split vocabulary).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f

    def mapped(names: tuple) -> PartitionSpec:
        entries = [(e,) if isinstance(e, str) else e or () for e in spec(*names)]
        return PartitionSpec(*(tuple(a for a in e if a not in keep) or None for e in entries))

    return jax.shard_map(
        f,
        in_specs=tuple(mapped(n) for n in in_names),
        out_specs=tuple(mapped(n) for n in out_names),
        axis_names=set(AXES) - set(keep),
        check_vma=False,
    )
