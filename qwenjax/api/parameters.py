"""Parameters of a detected checkpoint: read into their shardings, adapters merged in, reward heads beside them."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from qwenjax import checkpoint
from qwenjax.api.checkpoint_path import CheckpointPath
from qwenjax.common import progress
from qwenjax.config import Lora, ModelConfig
from qwenjax.interop import peft
from qwenjax.interop.huggingface.load import load_params, param_shardings, total_bytes
from qwenjax.model import lora, reward_head, transformer


class RewardParams(NamedTuple):
    """A reward model as it was saved."""

    params: dict  # float32, of the network without output embedding; adapters are merged in
    head: jax.Array  # [d]
    gain: float  # with gain and bias, scores of the calibration's responses have mean 0 and deviation 1
    bias: float
    fingerprint: str  # 16 digits: hash of the arrays' hashes and of the calibration


def read_params(source: CheckpointPath, shardings: dict | None = None, dtype: str = "float32") -> dict:
    """The parameters of a language model, adapters merged in. Progress is shown on stderr.

    Args:
      shardings: tree of `param_shardings`; None: the default device.
    Raises:
      ValueError: tensors that are not those of `source.config`, a damaged file, a reward model, or adapters whose base
        model has changed.
    """
    _refuse_reward_model(source)
    return _read(source, shardings, dtype)[0]


def read_reward_model(source: CheckpointPath, shardings: dict | None = None) -> RewardParams:
    """A reward model of a run. Raises ValueError for another kind of model."""
    if not source.scores:
        raise ValueError(
            f"{source.path} is no reward model of ours; train one: python -m qwenjax.train --exp=tiny_rm "
            f"--set init_from={source.path}"
        )
    params, head = _read(source, shardings, "float32")
    identity = {name: source.meta.get(name) for name in ("hashes", "calibration")}
    return RewardParams(params, head, *source.meta["calibration"], checkpoint.digest(identity)[:16])


def read_adapter(source: CheckpointPath, shardings: dict | None = None) -> peft.Adapter:
    """The low-rank adapters, and the embeddings trained in full; replicated over the devices of `shardings`.

    Raises ValueError for a model without them, a reward model, and as `interop.peft.load_adapter`.
    """
    if source.base is None:
        raise ValueError(f"{source.path} has no low-rank adapters: it is a whole model")
    if not source.meta:
        return peft.load_adapter(source.path, source.config)._replace(base=str(source.base.path))
    _refuse_reward_model(source)
    return peft.Adapter(_saved_adapters(source, shardings)[0], source.experiment.lora, str(source.base.path))


def _refuse_reward_model(source: CheckpointPath) -> None:
    if source.scores:
        raise ValueError(
            f"{source.path} is a reward model: it scores texts and writes none. Give a language model here, and this "
            "one where a reward model is asked for (rl.reward, --reward, --table=4)"
        )


def _read(source: CheckpointPath, shardings: dict | None, dtype: str) -> tuple[dict, jax.Array | None]:
    """Parameters, and the head [d] of a reward model or None."""
    reader = _read_adapters if source.base else _read_hub if source.hub_checkpoint else _read_run
    return reader(source, shardings, dtype)


def _read_hub(source: CheckpointPath, shardings: dict | None, dtype: str) -> tuple[dict, None]:
    stored = source.hub_checkpoint._replace(config=source.config)
    with progress.meter(f"reading {source.path.name}", total_bytes(source.hub_checkpoint), "B") as step:
        return load_params(stored, shardings, jnp.dtype(dtype), step), None


def _read_run(source: CheckpointPath, shardings: dict | None, dtype: str) -> tuple[dict, jax.Array | None]:
    params, head = _load_saved(source, _shapes(_network(source)), shardings)
    return params if dtype == "float32" else jax.tree.map(lambda x: x.astype(dtype), params), head


def _read_adapters(source: CheckpointPath, shardings: dict | None, dtype: str) -> tuple[dict, jax.Array | None]:
    """The base model, in the precision of training, with what was trained merged in."""
    if source.scores:
        how = source.experiment.lora
        trained, head = _saved_adapters(source, shardings)
    else:
        adapter = read_adapter(source, shardings)
        trained, how, head = adapter.trained, adapter.lora, None
    base = _base_params(source, how, shardings)
    known = source.meta.get("frozen", {}).get("base")
    frozen = jax.jit(lambda params: lora.split(params, how)[1])
    if known and known != (now := checkpoint.fingerprint(frozen(base))):
        raise ValueError(
            f"{source.experiment.init_from} is not the model that the adapters in {source.path} were trained on "
            f"(fingerprint {known} then, {now} now): put it back"
        )

    def merge(trained: dict, base: dict) -> dict:
        merged = lora.merge(lora.variables(trained, lora.split(base, how)[1]), how)
        return jax.tree.map(lambda x: x.astype(dtype), merged)

    return jax.jit(merge, out_shardings=shardings)(trained, base), head


def _saved_adapters(source: CheckpointPath, shardings: dict | None) -> tuple[dict, jax.Array | None]:
    """What a run with adapters has saved, and the head of a reward model."""
    cfg, how = _network(source), source.experiment.lora
    shapes = {
        "params": {name: x for name, x in _shapes(cfg).items() if name in how.modules_to_save},
        "lora": nn.meta.unbox(jax.eval_shape(lambda: lora.init(cfg, how, jax.random.key(0)))),
    }
    return _load_saved(source, shapes, _replicated(shardings))


def _load_saved(source: CheckpointPath, shapes: dict, shardings: Any) -> tuple[dict, jax.Array | None]:
    """Parameters of a run in their shardings, and the head [d] of a reward model, which is replicated."""
    shapes = _with_shardings(shapes, shardings)
    if not source.scores:
        return checkpoint.load(source.path, shapes).params, None
    head = jax.ShapeDtypeStruct((source.config.embed,), jnp.float32)
    saved = {"backbone": shapes, "reward": _with_shardings(head, _replicated(shardings))}
    params = checkpoint.load(source.path, saved).params
    return params["backbone"], params["reward"]


def _base_params(source: CheckpointPath, how: Lora, shardings: dict | None) -> dict:
    """The base model of adapters: in the precision of training; for adapters of PEFT, as it is stored."""
    base, cfg = source.base, _network(source)
    dtype = "float32" if source.meta else base.dtype
    if how.base_dtype != "float32":
        dtype = "bfloat16"
    if source.scores and base.scores:
        return jax.tree.map(lambda x: x.astype(dtype), read_reward_model(base, shardings).params)
    if shardings is not None:
        shardings = param_shardings(source.config, _replicated(shardings).mesh)
    params = read_params(replace(base, config=source.config), shardings, dtype)
    return {name: x for name, x in params.items() if name != "head" or not cfg.tie_embeddings}


# ---- shapes and shardings ----


def _network(source: CheckpointPath) -> ModelConfig:
    """The config of the network whose parameters are saved: that of a reward model has no output embedding."""
    return reward_head.headless(source.config) if source.scores else source.config


def _shapes(cfg: ModelConfig) -> dict:
    """The parameters of a model, abstract."""
    return nn.meta.unbox(jax.eval_shape(lambda: transformer.init_params(cfg, jax.random.key(0))))


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes with their shardings: a tree of them, one for all, or None for the default device."""
    if shardings is None or isinstance(shardings, Sharding):
        one = shardings or SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda x: one, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _replicated(shardings: Any) -> Sharding | None:
    """A copy on each of the devices, for small arrays."""
    return None if shardings is None else NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
