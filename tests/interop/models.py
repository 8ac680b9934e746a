"""Tiny models of every shape that the layouts hold, with random parameters, for tests of this folder."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.config import Compute, ModelConfig
from qwenjax.interop import Tensor
from qwenjax.interop.huggingface.save import as_tensors
from qwenjax.model import transformer

PLAIN = ModelConfig(vocab=96, layers=3, embed=32, heads=4, ffn=44, context=64)
SHAPES = {
    "qwen": replace(PLAIN, ntk=True, logn=True),
    "qwen2": PLAIN,
    "qwen2 grouped": replace(PLAIN, kv_heads=2, rope_base=1e6, norm_eps=1e-5),
    "qwen2 tied": replace(PLAIN, kv_heads=1, tie_embeddings=True),
    "qwen3": replace(PLAIN, kv_heads=2, qkv_bias=False, qk_norm=True, head_dim=16, tie_embeddings=True),
    "llama": replace(PLAIN, kv_heads=2, qkv_bias=False, rope_base=5e5),
    "llama tied": replace(PLAIN, kv_heads=2, qkv_bias=False, tie_embeddings=True, head_dim=12),
}


def params(config: ModelConfig, seed: int = 0, dtype=np.float32) -> dict:
    """Random parameters of the size that weights, biases and norms have."""
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def fill(path, x):
        value = 0.2 * rng.standard_normal(x.shape)
        return (value + (1 if "norm" in jax.tree_util.keystr(path) else 0)).astype(dtype)

    shapes = jax.tree.map(lambda x: x.value, shapes, is_leaf=lambda x: hasattr(x, "names"))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def logits(config: ModelConfig, params: dict, ids: np.ndarray) -> np.ndarray:
    """[b t v] in float32, without any context extension."""
    config = replace(config, ntk=False, logn=False, windows=())
    compute = Compute(dtype="float32", remat="none", attention="xla", fuse="no")
    hidden, _ = jax.jit(transformer.Transformer(config, compute).apply)({"params": params}, jnp.asarray(ids))
    return np.asarray(transformer.logits(params, hidden))


def equal(a: dict, b: dict) -> bool:
    """Whether two trees hold the same bits."""

    def bits(x):
        return x.dtype, x.shape, np.asarray(x).tobytes()

    same = jax.tree.map(lambda x, y: bits(x) == bits(y), a, b)
    return jax.tree.all(same)


def tensors(config: ModelConfig, params: dict, layout: str = "qwen2") -> dict[str, np.ndarray]:
    """The parameters under the names of a layout."""
    return {name: tensor.read() for name, tensor in as_tensors(config, params, layout).items()}


def descriptors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as a reader would return them."""
    return {name: Tensor(x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}
