"""Checkpoints: bit-exact, resharded, verified; damage of every kind is noticed."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenjax import checkpoint
from qwenjax.checkpoint import Checkpoints


def tree(seed=0):
    rng = np.random.default_rng(seed)
    w, m, b = rng.normal(size=(64, 32)), rng.normal(size=(64, 32)), rng.normal(size=8)
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.bfloat16)}
    return params, {"step": jnp.int32(seed), "m": {"w": jnp.asarray(m, jnp.float32)}}


def abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


@pytest.fixture
def saved(tmp_path):
    """Steps 1 to 3, with their tokenizer."""
    vocabulary = tmp_path / "tokenizer"
    vocabulary.mkdir()
    (vocabulary / "tokenizer.model").write_bytes(b"pieces")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, *tree(step), {"next_row": 10 * step}, vocabulary)
    checkpoints.close()
    return tmp_path


def restore(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    return checkpoints.restore(*abstract(tree())), checkpoints


def test_round_trip_is_bit_identical(saved):
    got, _ = restore(saved)
    assert (got.step, got.meta["next_row"]) == (3, 30)
    for a, b in zip(jax.tree.leaves((got.params, got.train_state)), jax.tree.leaves(tree(3))):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert base64.b64decode(got.meta["tokenizer"]["tokenizer.model"]) == b"pieces"


def test_restores_into_another_sharding_and_parameters_alone(saved):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    got = checkpoint.load(checkpoint.newest(saved), abstract(tree()[0], NamedSharding(mesh, P("x"))))
    assert got.train_state is None
    assert got.params["w"].addressable_shards[0].data.shape == (8, 32)
    np.testing.assert_array_equal(got.params["w"], tree(3)[0]["w"])


def test_hash_sees_every_bit_and_every_move_whatever_the_sharding():
    x = jnp.arange(64.0).reshape(8, 8)
    base = np.asarray(checkpoint.hashes(x))
    mesh = Mesh(np.array(jax.devices()), ("x",))
    np.testing.assert_array_equal(checkpoint.hashes(jax.device_put(x, NamedSharding(mesh, P("x")))), base)
    np.testing.assert_array_equal(checkpoint.hashes(jax.device_put(x, NamedSharding(mesh, P(None, "x")))), base)
    one_bit = np.asarray(x).view(np.uint32) ^ (np.arange(64, dtype=np.uint32).reshape(8, 8) == 9)
    for changed in (x.at[3, 4].set(0.5), x.T, x[::-1], jnp.asarray(one_bit.view(np.float32))):
        assert (np.asarray(checkpoint.hashes(changed)) != base).all()


def biggest(folder):
    return max((p for p in folder.rglob("*") if p.is_file() and "/d/" in str(p)), key=lambda p: p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGE = {
    "flipped bit in the parameters": lambda step: flip(biggest(step / "params")),
    "flipped bit in the optimizer": lambda step: flip(biggest(step / "rest")),
    "truncated file": lambda step: biggest(step / "params").write_bytes(biggest(step / "params").read_bytes()[:2000]),
    "deleted file": lambda step: biggest(step / "rest").unlink(),
    "changed description": lambda step: (step / "meta" / "metadata").write_text(
        json.dumps(json.loads((step / "meta" / "metadata").read_text()) | {"next_row": 31})
    ),
    "broken description": lambda step: (step / "meta" / "metadata").write_text('{"next_row"'),
    "no description": lambda step: (step / "meta" / "metadata").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_newest_whole_checkpoint(saved, damage):
    DAMAGE[damage](saved / "checkpoints" / "3")
    got, checkpoints = restore(saved)
    assert (got.step, got.meta["next_row"]) == (2, 20)
    np.testing.assert_array_equal(got.params["w"], tree(2)[0]["w"])
    assert len(checkpoints.damaged) == 1
    assert "step 3 is damaged" in checkpoints.damaged[0]
    assert (saved / "damaged" / "3").is_dir()  # kept for whoever wants to look
    checkpoints.save(3, *tree(3), {"next_row": 30}, saved / "tokenizer")  # and its place is free
    checkpoints.close()
    assert restore(saved)[0].step == 3


def test_when_nothing_is_whole_nothing_is_touched(saved):
    for step in (1, 2, 3):
        flip(biggest(saved / "checkpoints" / str(step) / "params"))
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged:\n  step 3: (.|\n)*left in place"):
        restore(saved)
    assert {p.name for p in (saved / "checkpoints").iterdir()} >= {"1", "2", "3"}


def test_another_model_is_refused_and_nothing_moved(saved):
    params, rest = tree()
    with pytest.raises(ValueError, match=r"another model or optimizer: \['params'\]\['w'\]"):
        Checkpoints(saved / "checkpoints").restore(*abstract(({**params, "w": params["w"][:32]}, rest)))
    assert (saved / "checkpoints" / "3").is_dir()


def test_empty_or_absent_folder(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints").restore(*abstract(tree())) is None
    with pytest.raises(ValueError, match="no checkpoint in"):
        checkpoint.newest(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint in"):
        checkpoint.newest(tmp_path / "absent")


def test_keep_policy(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(step, *tree(step), {"next_row": step}, tmp_path / "tokenizer")
    checkpoints.wait()
    assert checkpoints.steps() == [7, 6, 4]
    checkpoints.close()


def test_a_state_that_is_not_finite_is_not_saved(saved):
    params, rest = tree(4)
    params["w"] = params["w"].at[0, 0].set(jnp.nan)
    checkpoints = Checkpoints(saved / "checkpoints")
    with pytest.raises(FloatingPointError, match="step 4"):
        checkpoints.save(4, params, rest, {}, saved / "tokenizer")
    assert checkpoints.steps() == [3, 2, 1]


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
import test_checkpoint as t
from pathlib import Path
folder = Path({folder!r})
checkpoints = t.Checkpoints(folder / "checkpoints")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoints.save(4, *t.tree(4), {{"next_row": 40}}, folder / "tokenizer")
    checkpoints.wait()
except t.checkpoint.SaveFailed as error:
    print("FAILED:", error)
"""


def test_a_save_that_fails_raises_and_names_the_newest_whole_checkpoint(saved):
    """RLIMIT_FSIZE: no file may grow past 4 KB, as on a full disk."""
    code = FULL_DISK.format(tests=str(Path(__file__).parent), folder=str(saved))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "FAILED: could not write a checkpoint" in done.stdout, done.stderr[-2000:]
    assert "the newest complete one is step 3" in done.stdout
    assert restore(saved)[0].step == 3
