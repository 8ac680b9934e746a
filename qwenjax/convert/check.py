"""What was written, read back and compared: every tensor by its bits, and the mathematics against transformers."""

import dataclasses
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from qwenjax.api.checkpoint_path import CheckpointPath, detect
from qwenjax.config import ModelConfig
from qwenjax.convert import layers
from qwenjax.interop.huggingface.save import as_tensors
from qwenjax.interop.peft import Adapter

TEXT = "The cat's 3 hats, naïve “quotes” and\n\n\tif x != 7:  # 天地玄黄 👩\u200d👧 \r\n"
Q8 = 0.0045  # of a block's largest value: half a step of 127, and the step itself in 11 bits


def check(source: CheckpointPath, params: dict, out: Path, to: str, dtype: str, quant: str) -> Iterator[str]:
    """Lines about what agrees.

    Raises:
      ValueError: something does not; it is named.
    """
    again = detect(out)
    yield from _same_config(source.config, again.config)
    yield _same_tensors(source.config, params, again, to, dtype, quant)
    yield from _same_tokenizer(source, again)
    yield from _same_mathematics(source, params, again, to)


def check_adapter(source: CheckpointPath, adapter: Adapter, out: Path) -> Iterator[str]:
    """Lines about what agrees of adapters that were written.

    Raises:
      ValueError: something does not.
    """
    again = detect(out)
    read = again.adapter()
    for name in ("rank", "alpha", "base"):
        ours, theirs = getattr(adapter.lora, name), getattr(read.lora, name)
        if ours != theirs and not (name == "alpha" and math.isclose(ours, theirs)):
            raise ValueError(f"{out} reads as adapters of lora.{name}={theirs} instead of {ours}")
    wanted, got = (dict(jax.tree_util.tree_flatten_with_path(x.trained)[0]) for x in (adapter, read))
    for path, ours in wanted.items():
        if path not in got or not np.array_equal(_bits(np.asarray(ours)), _bits(got[path])):
            raise ValueError(f"{jax.tree_util.keystr(path)} of {out} is not what was to be written")
    yield f"adapters      {len(wanted)} arrays read back bit by bit as written"
    yield from _same_tokenizer(source, again)
    size = layers.ROWS, min(layers.LENGTH, source.config.context)
    ids = np.random.default_rng(0).integers(0, source.config.vocab, size)
    ours, theirs = (dict(layers.states(source.config, one.params(), ids))["logits"] for one in (source, again))
    relative = float((np.abs(ours - theirs).max(axis=-1) / np.abs(ours).max(axis=-1)).max())
    if not relative <= layers.TOLERANCE:
        raise ValueError(f"with {out} merged in, logits are off by {relative:.1e} of the largest of their position")
    yield f"mathematics   merged in where they were written to, logits are off by {relative:.1e} of the largest at most"


def _same_config(wanted: ModelConfig, got: ModelConfig) -> Iterator[str]:
    unlike = [f.name for f in dataclasses.fields(ModelConfig) if getattr(wanted, f.name) != getattr(got, f.name)]
    lost = [name for name in unlike if name in ("ntk", "logn", "windows")]
    if wrong := [name for name in unlike if name not in lost]:
        listed = ", ".join(f"{name}={getattr(got, name)!r} instead of {getattr(wanted, name)!r}" for name in wrong)
        raise ValueError(f"what was written reads as another model: {listed}")
    yield "config        reads back the same" + (f", but for {', '.join(lost)} (see the notes)" if lost else "")


def _same_tensors(config: ModelConfig, params: dict, again: CheckpointPath, to: str, dtype: str, quant: str) -> str:
    layout = "qwen" if to == "qwen" else "qwen2"
    wanted, got = as_tensors(config, params, layout, None if to == "gguf" else dtype), again.foreign.tensors
    if wanted.keys() != got.keys():
        odd = sorted(wanted.keys() ^ got.keys())
        raise ValueError(f"{again.path} has other tensors: {', '.join(odd[:4])} on one side only")
    worst = 0.0
    for name, tensor in wanted.items():
        ours, theirs = tensor.read(), got[name].read()
        if to == "gguf" and ours.ndim > 1 and quant == "q8_0" and ours.shape[-1] % 32 == 0:
            worst = max(worst, _q8_error(ours, theirs))
            continue
        if to == "gguf":
            ours = ours.astype(np.float16 if ours.ndim > 1 else np.float32)
        if ours.dtype != theirs.dtype or not np.array_equal(_bits(ours), _bits(theirs)):
            raise ValueError(f"tensor {name!r} of {again.path} is not what was to be written")
    if not worst:
        return f"tensors       {len(wanted)} read back bit by bit as written"
    if worst > Q8:
        raise ValueError(f"{again.path}: a value is off by {worst:.1%} of its block's largest; q8_0 allows {Q8:.2%}")
    return f"tensors       {len(wanted)} read back; q8_0 is off by {worst:.2%} of a block's largest value at most"


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint16 if x.dtype in (np.float16, ml_dtypes.bfloat16) else np.uint32)


def _q8_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a part of the largest value of its block of 32."""
    ours, theirs = (x.astype(np.float32).reshape(-1, 32) for x in (ours, theirs))
    largest = np.maximum(np.abs(ours).max(axis=1, keepdims=True), 1e-30)
    return float((np.abs(ours - theirs) / largest).max())


def _same_tokenizer(source: CheckpointPath, again: CheckpointPath) -> Iterator[str]:
    ours, theirs = source.tokenizer(), again.tokenizer()
    if ours is None or theirs is None:
        yield "tokenizer     none"
        return
    texts = [TEXT, *(TEXT + surface + TEXT for surface in sorted(ours.special)[:8])]
    for text in texts:
        if ours.encode(text) != theirs.encode(text) or ours.encode_ordinary(text) != theirs.encode_ordinary(text):
            raise ValueError(f"the tokenizer of {again.path} gives other ids, e.g. of {text!r}")
    yield f"tokenizer     {theirs.name} gives the ids of {ours.name}"


def _same_mathematics(source: CheckpointPath, params: dict, again: CheckpointPath, to: str) -> Iterator[str]:
    """Against transformers, which loads the source itself where it can, else what was written."""
    if source.foreign and source.foreign.layout == "qwen2" and _plain(source):
        reference = source.path
    elif to == "qwen2":
        reference = again.path
    else:
        yield "mathematics   not run: transformers loads neither side without remote code"
        return
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        yield "mathematics   not run: pip install 'qwenjax[parity]'"
        return
    yield from layers.compare(source.config, params, reference)


def _plain(source: CheckpointPath) -> bool:
    """Whether transformers reads the weights without another package: a directory that is not quantised."""
    files = source.foreign.files
    quantized = "quantize_config.json" in files or files.get("config.json", {}).get("quantization_config")
    return source.path.is_dir() and not quantized
