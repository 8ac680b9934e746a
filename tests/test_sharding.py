"""The rules table, the mesh, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from qwenjax.config import MeshShape
from qwenjax.sharding import constrain, make_mesh, per_device, sharding, spec


def test_spec_follows_the_table_and_refuses_unknown_names():
    assert spec("layers", "embed", "heads", None) == P(None, "fsdp", "tensor", None)
    assert spec("batch", "length") == P(("data", "fsdp"), "context")
    with pytest.raises(ValueError, match="no sharding rule for \\['hedas'\\]; known axes"):
        spec("hedas")


def test_a_dimension_that_does_not_divide_is_refused_but_few_kv_heads_are_copied():
    mesh = make_mesh(MeshShape(fsdp=2, tensor=4), 64)
    with pytest.raises(ValueError, match="axis 'embed' of size 3 does not divide over fsdp=2"):
        sharding(mesh, ("embed", "heads"), (3, 8))
    assert sharding(mesh, ("embed", "kv_heads"), (4, 2)).spec == P("fsdp", None)


def test_mesh_fills_one_axis_and_counts_devices():
    assert dict(make_mesh(MeshShape(), 64).shape) == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    assert dict(make_mesh(MeshShape(data=2, fsdp=-1, tensor=2), 64).shape)["fsdp"] == 2
    with pytest.raises(ValueError, match=r"fsdp=3.*does not fit 8 devices"):
        make_mesh(MeshShape(fsdp=3), 64)
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(MeshShape(data=2, fsdp=2), 64)


def test_constrain_and_per_device_are_the_identity_without_a_mesh():
    x = jnp.arange(6.0).reshape(2, 3)
    assert constrain(x, "batch", "length") is x
    f = lambda a: (a,)  # noqa: E731
    assert per_device(f, (("batch", None),), (("batch", None),)) is f


def test_per_device_gives_each_device_its_block_and_shards_add_up():
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), 64)
    x = jnp.arange(16.0).reshape(8, 2)
    seen = []

    def local(block):
        seen.append(block.shape)
        return block * 2, jnp.sum(block)[None]

    @jax.jit
    def run(x):
        twice, sums = per_device(local, (("batch", None),), (("batch", None), ("shards",)))(x)
        return twice, jnp.sum(sums)

    with jax.set_mesh(mesh):
        twice, total = run(x)
    assert seen[0] == (2, 2)  # 8 rows over data x fsdp = 4
    np.testing.assert_array_equal(twice, x * 2)
    assert total == x.sum()


def test_constrain_leaves_a_short_dimension_whole():
    with jax.set_mesh(make_mesh(MeshShape(), 64)):
        out = jax.jit(lambda x: constrain(x, "batch", None))(jnp.ones((3, 2)))
    assert out.shape == (3, 2)
