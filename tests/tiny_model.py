"""A tiny chat model with random weights and its own vocabulary, as a directory of the hubs."""

import argparse
import functools
import inspect
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from qwenjax.config import ModelConfig
from qwenjax.interop.huggingface.save import save_params
from qwenjax.model import transformer
from qwenjax.tokenizer import sentencepiece

CONFIG = ModelConfig(
    vocab=512, layers=2, embed=32, heads=4, kv_heads=2, ffn=48, context=64, qkv_bias=False, tie_embeddings=True
)


@functools.cache
def tokenizer() -> sentencepiece.SentencePiece:
    """480 ids: fewer than the model has rows."""
    with tempfile.TemporaryDirectory() as folder:
        return sentencepiece.train([inspect.getsource(argparse)[:40_000]], 480, Path(folder) / "tokenizer.model")


def params(config: ModelConfig = CONFIG, seed: int = 0) -> dict:
    """Random parameters, large enough that tokens differ clearly in probability."""
    shapes = nn.unbox(jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0))))
    rng = np.random.default_rng(seed)

    def fill(path, x):
        return (0.3 * rng.standard_normal(x.shape) + ("norm" in jax.tree_util.keystr(path))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def write(folder: Path, config: ModelConfig = CONFIG, layout: str = "qwen2", **options) -> Path:
    """Writes the model into a directory and returns it."""
    save_params(config, params(config), folder, layout, tokenizer=tokenizer(), **options)
    return folder
