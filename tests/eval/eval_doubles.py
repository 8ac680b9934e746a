"""A small model whose tokens are bytes, so that what is measured can be worked out by hand."""

import functools

import jax
from flax import linen as nn

from qwenjax.api.model import Model
from qwenjax.config import Compute, ModelConfig
from qwenjax.model import transformer

CONFIG = ModelConfig(vocab=264, layers=2, embed=16, heads=2, ffn=24, context=8)


class Bytes:
    """A tokenizer with an id for every byte; ids from 256 on are padding rows of the embedding."""

    size, prefix, name = 256, (), "bytes"

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids) -> bytes:
        return bytes(ids)


@functools.cache
def params(blank: bool) -> dict:
    """Large enough that tokens matter; blank: all zero, so that every token is equally likely."""
    fresh = jax.jit(lambda key: nn.unbox(transformer.init_params(CONFIG, key)))(jax.random.key(0))
    return jax.tree.map(lambda x: x * (0 if blank else 3), fresh)


def model(config: ModelConfig = CONFIG, blank: bool = False) -> Model:
    """Its context options may differ, its shape may not."""
    compute = Compute(dtype="float32", remat="none", attention="xla", fuse="yes")
    return Model(config, params(blank), Bytes(), compute)
