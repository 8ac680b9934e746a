"""A checkpoint of the hubs: a directory with config.json, and tensors in safetensors or PyTorch files.

Opening it reads headers only; each tensor is read when it is needed.
"""

import functools
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from qwenjax.common.storage import lfs_hint, read_json
from qwenjax.interop import HubCheckpoint, Tensor, awq, gptq
from qwenjax.interop.huggingface.config import read_config

CONFIG = "config.json"
QUANTIZED = "quantize_config.json"
KEPT = ("generation_config.json", "tokenizer_config.json", QUANTIZED)  # further files of a `HubCheckpoint`

# Prefixes of torch.compile, of data parallelism and of PEFT
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.|base_model\.model\.)+")

# The names of numpy's dtypes in safetensors
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def open_directory(path: str | Path) -> HubCheckpoint:
    """The checkpoint in a directory; weights packed by GPTQ are unpacked when they are read.

    Raises ValueError for a file that is missing, damaged, not supported or holds more than weights, by name.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no {CONFIG}: it is no checkpoint of the Hugging Face form")
    files = {name: read_json(folder / name) for name in (CONFIG, *KEPT) if (folder / name).is_file()}
    config, layout = read_config(files[CONFIG], str(folder / CONFIG))
    tensors = plain_names(open_tensors(folder))
    packing = QUANTIZED if QUANTIZED in files else CONFIG  # the first GPTQ releases have a file for it
    if QUANTIZED in files or files[CONFIG].get("quantization_config"):
        how, source = files[packing].get("quantization_config", files[packing]), str(folder / packing)
        unpack = awq.dequantised if how.get("quant_method") == "awq" else gptq.dequantised
        tensors = unpack(tensors, how, source)
    if files[CONFIG].get("tie_word_embeddings") is None and "lm_head.weight" not in tensors:
        config = replace(config, tie_embeddings=True)  # the tensors say what the config does not
    return HubCheckpoint(config, layout, tensors, files)


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory: of model.safetensors, pytorch_model.bin, the index of either, or one .safetensors."""
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickle)):
        if (folder / name).is_file():
            return read(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            return _sharded(index, read)
    stray = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    if len(stray) == 1 and stray[0].endswith(".safetensors") and "-of-" not in stray[0]:
        return read_safetensors(folder / stray[0])
    raise ValueError(
        f"{folder} holds no weights: wanted model.safetensors or pytorch_model.bin, or the .index.json of either"
        + (f"; {stray[0]} is there, its index is not" if stray else "")
    )


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of a causal language model, whatever wrapped the model when it was saved.

    Raises:
      ValueError: two tensors would have one name.
    """
    out: dict[str, Tensor] = {}
    bare = not any(re.search(r"(^|\.)(model|transformer)\.", WRAPPERS.sub("", name)) for name in tensors)
    for name, tensor in tensors.items():
        plain = WRAPPERS.sub("", name)
        plain = re.sub(r"^(language_model\.)?model\.language_model\.", "model.", plain).removeprefix("language_model.")
        if bare and not plain.startswith("lm_head."):
            plain = f"model.{plain}"
        if plain in out:
            raise ValueError(f"the checkpoint holds {plain!r} twice, once as {name!r}")
        out[plain] = tensor
    return out


def _sharded(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several files, each from the file that the index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} has no 'weight_map' from tensors to files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        path = index.parent / file
        own = [name for name, where in names.items() if where == file]
        if Path(file).name != file:
            raise ValueError(f"{index} names {file!r}, which is not a file beside it")
        if not path.is_file():
            raise ValueError(f"{index} names {file} for {len(own)} tensors, and there is no such file beside it")
        stored = read(path)
        for name in own:
            if name not in stored:
                raise ValueError(f"{index} says that {file} holds {name!r}, which it does not")
            tensors[name] = stored[name]
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name. Raises ValueError for a file that is cut short or holds an unknown dtype."""
    try:
        with safe_open(path, framework="numpy") as file:
            heads = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            shapes = {name: (tuple(head.get_shape()), head.get_dtype()) for name, head in heads.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file: {error}{lfs_hint(path)}") from None

    def read(name: str) -> np.ndarray:
        with safe_open(path, framework="numpy") as file:  # opened for each tensor: frees earlier ones
            return file.get_tensor(name)

    tensors = {}
    for name, (shape, dtype) in shapes.items():
        if dtype not in DTYPES:
            raise ValueError(f"{path}: tensor {name!r} has dtype {dtype}, which is not read; {', '.join(DTYPES)} are")
        tensors[name] = Tensor(shape, np.dtype(DTYPES[dtype]), functools.partial(read, name))
    return tensors


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, by name; torch's unpickler of weights runs no code in the file.

    Raises ValueError if torch is not installed, or the file is cut short or has more than tensors.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"to read {path} run `pip install 'qwenjax[parity]'`, or convert it to safetensors") from None
    try:
        mapped = zipfile.is_zipfile(path)  # not in the format of torch before 1.6
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, …
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is refused: it is cut short or holds more than weights: {reason}") from None
    if isinstance(values, dict) and set(values) == {"state_dict"}:
        values = values["state_dict"]
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise ValueError(f"{path} is refused: wanted a dictionary of tensors")

    def read(tensor) -> np.ndarray:
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:  # numpy has none
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    tensors = {}
    for name, value in values.items():
        try:
            dtype = read(value[:0] if value.ndim else value).dtype
        except TypeError:
            raise ValueError(f"{path}: tensor {name!r} has dtype {value.dtype}, which is not read") from None
        tensors[name] = Tensor(tuple(value.shape), dtype, functools.partial(read, value))
    return tensors
