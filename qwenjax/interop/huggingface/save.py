"""Our parameters as a checkpoint that other programs read: safetensors with an index, configs, tokenizer.

Everything is written into a temporary directory, which gets its name when it is complete. The host holds the tensors
of one file at a time.
"""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwenjax.common.storage import write_json
from qwenjax.config import ModelConfig
from qwenjax.interop import Tensor
from qwenjax.interop.huggingface.config import write_config
from qwenjax.interop.huggingface.directory import CONFIG
from qwenjax.interop.huggingface.layout import Table
from qwenjax.interop.huggingface.tokenizer import generation_config, write_tokenizer
from qwenjax.tokenizer.base import Tokenizer

GENERATION = "generation_config.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MADE_BY = {"format": "pt", "made_by": "qwenjax"}  # in the header of each file; transformers needs the format
OTHERS = {CONFIG, GENERATION, "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"}
OTHERS |= {"qwen.tiktoken", "extra.tiktoken", "tokenizer.model"}


def save_params(
    config: ModelConfig,
    params: dict,
    directory: str | Path,
    layout: str = "qwen2",
    *,
    dtype: str | None = None,
    tokenizer: Tokenizer | None = None,
    chat: bool = True,
    generation: dict[str, Any] | None = None,
    file_bytes: int = 5_000_000_000,
    progress: Callable[[int], None] = lambda written: None,
) -> list[str]:
    """Writes a model in the layout 'qwen' (the first releases) or 'qwen2' (Qwen2, Qwen3 or Llama).

    Args:
      params: as `transformer.init_params`, sharded in any way.
      dtype: 'float32' or 'bfloat16'; None: that of the embedding.
      chat: whether the model uses ChatML; decides what ends a text, and whether there is a chat template.
      generation: generation_config.json; None writes that of the releases.
      file_bytes: size of a file at most; a larger tensor has a file of its own.
      progress: called after each tensor with its bytes.
    Returns: a sentence for each thing that the layout cannot express and that is left out (dynamic NTK, LogN, …).
    Raises:
      ValueError: a model or tokenizer that the layout does not have, parameters that do not match the config, or a
        directory with files that `save_params` has not written.
    """
    target = Path(directory)
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not _is_ours(target)):
        raise ValueError(f"{target} exists and was not written by qwenjax: give a new or empty directory")
    tensors = as_tensors(config, params, layout, dtype)
    dtype = next(iter(tensors.values())).dtype.name
    values, warnings = write_config(config, layout, dtype)
    if tokenizer is not None:
        values |= {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}
        generation = generation_config(tokenizer, layout, config, chat) if generation is None else generation
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        if tokenizer is not None:
            warnings += write_tokenizer(tokenizer, temporary, layout, config, chat)
        _write_tensors(temporary, tensors, file_bytes, progress)
        if generation is not None:
            write_json(temporary / GENERATION, generation)
        write_json(temporary / CONFIG, values)
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.is_dir():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return warnings


def as_tensors(config: ModelConfig, params: dict, layout: str = "qwen2", dtype: str | None = None) -> dict[str, Tensor]:
    """Our parameters under the names and in the shapes of a layout; reading one copies it to the host."""
    table = Table(config, layout)
    flat = _check(table, config, params)
    dtype = dtype or str(flat["embed"].dtype)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not written; known: {', '.join(DTYPES)}")
    kind = DTYPES[dtype]

    def read(name: str) -> np.ndarray:
        arrays = []
        for part in table.parts[name]:
            stacked = flat[part.entry.ours]
            arrays.append(np.asarray(stacked if part.layer is None else stacked[part.layer]))
        return table.to_theirs(name, arrays).astype(kind, copy=False)

    return {name: Tensor(table.shape(name), kind, functools.partial(read, name)) for name in table.parts}


def _check(table: Table, config: ModelConfig, params: dict) -> dict[str, jax.Array]:
    """The parameters by path. Raises ValueError if they are not those of the model."""
    flat = flatten_dict(params, sep="/")
    wanted = {x.ours: ((config.layers,) if x.stacked else ()) + table.ours_shape(x) for x in table.entries}
    if set(flat) != set(wanted):
        odd = sorted(set(flat) ^ set(wanted))
        raise ValueError(f"the parameters are not those of the config: {', '.join(odd[:4])} on one side only")
    for path, shape in wanted.items():
        if flat[path].shape != shape:
            raise ValueError(f"parameter {path} has shape {flat[path].shape}, the config says {shape}")
        if not getattr(flat[path], "is_fully_addressable", True):
            raise ValueError("parameters are spread over several processes: restore them in one process to write them")
    return flat


def _write_tensors(folder: Path, tensors: dict[str, Tensor], limit: int, progress: Callable[[int], None]) -> None:
    """model.safetensors, or several of at most `limit` bytes with an index."""
    groups: list[list[str]] = []
    left = 0
    for name, tensor in tensors.items():
        if not groups or tensor.nbytes > left:
            groups.append([])
            left = limit
        groups[-1].append(name)
        left -= tensor.nbytes
    where = {}
    for i, names in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
        where |= dict.fromkeys(names, file)
        arrays = {}
        for name in names:
            arrays[name] = tensors[name].read()
            progress(tensors[name].nbytes)
        save_file(arrays, folder / file, metadata=MADE_BY)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": where}
        write_json(folder / "model.safetensors.index.json", index)


def written_here(file: Path) -> bool:
    """Whether a safetensors file has the mark of qwenjax in its header."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return (opened.metadata() or {}).get("made_by") == MADE_BY["made_by"]
    except (SafetensorError, OSError):
        return False


def _is_ours(folder: Path) -> bool:
    """Whether a directory holds a checkpoint that `save_params` wrote, and nothing else."""
    weights = [path for path in folder.iterdir() if path.name not in OTHERS]
    return bool(weights) and all(map(written_here, weights))
