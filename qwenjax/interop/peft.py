"""Low-rank adapters in the files of the PEFT library: adapter_config.json and adapter_model.safetensors.

A projection has `lora_A.weight` [r, in] and `lora_B.weight` [out, r]. In the Qwen-v1 layout q, k and v are rows of one
c_attn: their adapters become one of the summed rank, in which B has a block for each. c_attn adapters of other programs
have one A for all three; it is copied.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import save

from qwenjax.common.storage import read_json, write_atomically, write_json
from qwenjax.config import PROJECTIONS, Lora, ModelConfig
from qwenjax.interop import Tensor
from qwenjax.interop.huggingface.directory import read_pickle, read_safetensors
from qwenjax.interop.huggingface.layout import Table, TensorPart
from qwenjax.interop.huggingface.load import few
from qwenjax.interop.huggingface.save import MADE_BY, written_here
from qwenjax.model import transformer
from qwenjax.model.lora import TARGETS, init

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# In the header of files of qwenjax: which of q, k, v have a block of the c_attn adapters, and `lora.base_dtype`
BLOCKS, BASE_DTYPE = "qwenjax_blocks", "qwenjax_base"
PREFIX = "base_model.model."
FACTOR = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")
HEAD = "lm_head.weight"

# Fields that do not change what an adapter computes. Others are refused if they are set and not in READ, because PEFT
# may add fields that do.
HARMLESS = {
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "modules_to_save", "megatron_core", "runtime_config", "qalora_group_size",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
}  # fmt: skip
READ = {"peft_type", "base_model_name_or_path", "bias", "init_lora_weights", "ensure_weight_tying"}
READ |= {"use_rslora", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern"}
# Other initialisations change weights of the base model
PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


class Adapter(NamedTuple):
    """Adapters and their configuration."""

    trained: dict  # {"lora": …, "params": embeddings trained in full}, for `model.lora.variables`; numpy, float32
    lora: Lora  # base_dtype is 'float32' if another program wrote the file
    base: str  # path or name of the base model in the file; may be ''


def save_adapter(
    directory: str | Path, trained: dict, lora: Lora, cfg: ModelConfig, base: str, layout: str = "qwen2"
) -> None:
    """Writes adapters, and embeddings trained in full, so that `peft.PeftModel.from_pretrained` reads them.

    Args:
      trained: {"lora": adapters, "params": {"embed" or "head": …}}, as in training.
      base, layout: path or name of the base model, and its layout: 'qwen' or 'qwen2'.
    Raises:
      ValueError: adapters of another rank or model, arrays that are spread over processes, a model that the layout
        does not have, or a directory with an adapter that qwenjax has not written.
    """
    folder, table = Path(directory), Table(cfg, layout)
    if folder.is_file() or ((folder / WEIGHTS).exists() and not written_here(folder / WEIGHTS)):
        raise ValueError(f"{folder} exists and was not written by qwenjax: give another directory")
    _check_trained(trained, lora, cfg)
    adapters = {name: pair for module in trained["lora"]["blocks"].values() for name, pair in module.items()}
    adapters = {name: {x: np.asarray(pair[x], np.float32) for x in "ab"} for name, pair in adapters.items()}
    tensors: dict[str, np.ndarray] = {}
    modules: dict[str, int] = {}  # attn.c_attn, … -> projections in it
    for name, parts in table.parts.items():
        if held := [part for part in parts if _name(part) in adapters]:
            module = name.removesuffix(".weight")
            modules[".".join(module.split(".")[-2:])] = len(held)
            a, b = _joined(held, table.shape(name)[0], adapters)
            tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = a, b
    embeddings = _embeddings(trained.get("params", {}), table)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": lora.dropout,
        "bias": "none",
        "target_modules": _short(list(modules)),
        "modules_to_save": [name.split(".")[-2] for name in embeddings] or None,
        "rank_pattern": {module: n * lora.rank for module, n in modules.items() if n > 1},
        "alpha_pattern": {module: _number(n * lora.alpha) for module, n in modules.items() if n > 1},
        "inference_mode": True,
    }
    header = {**MADE_BY, BLOCKS: " ".join(name for name in "qkv" if name in adapters), BASE_DTYPE: lora.base_dtype}
    folder.mkdir(parents=True, exist_ok=True)
    tensors |= {PREFIX + name: x for name, x in embeddings.items()}
    write_atomically(folder / WEIGHTS, save(tensors, header))
    write_json(folder / CONFIG, values)


def load_adapter(directory: str | Path, cfg: ModelConfig) -> Adapter:
    """The adapter in a directory, of either layout and for any of the projections of `cfg`.

    Smaller ranks and layers without an adapter are filled up with zeros, another scale is multiplied into B.

    Raises:
      ValueError: no adapter, another kind than plain LoRA, or tensors that do not fit the model, by name.
    """
    folder = Path(directory)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no {CONFIG}: it is no adapter of the PEFT library")
    values = read_json(folder / CONFIG)
    _check_kind(values, folder / CONFIG)
    tensors, header = _open(folder)
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)  # module -> A and B
    others = {}
    for name, tensor in tensors.items():
        if match := FACTOR.fullmatch(name):
            factors[match[1]][match[2]] = tensor
        else:
            others[name.removeprefix(PREFIX)] = tensor
    table = Table(cfg, "qwen" if any(name.startswith("transformer.") for name in (*factors, *others)) else "qwen2")
    params = _read_embeddings(others, table, values, folder)
    _check_fit(factors, table, values, folder)
    pieces: dict[str, dict[int, tuple]] = defaultdict(dict)  # our name -> layer -> a, b, scale
    for module, pair in factors.items():
        a, b = (pair[x].read().astype(np.float32) for x in "AB")
        scale = _pattern(values, "lora_alpha", module) / (len(a) ** 0.5 if values.get("use_rslora") else len(a))
        for part, a_, b_ in _apart(table.parts[f"{module}.weight"], a, b, header.get(BLOCKS, "").split()):
            target, sizes = TARGETS[_name(part)], table.ours_shape(part.entry)
            a_ = a_.T.reshape(*(sizes[i] for i in target.inputs), -1)  # [*in, r]
            b_ = b_.T.reshape(-1, *(sizes[i] for i in target.outputs))  # [r, *out]
            pieces[_name(part)][part.layer] = (a_, b_, scale)
    if not pieces:
        raise ValueError(f"{folder}: no low-rank adapter is in it")
    every = [piece for layers in pieces.values() for piece in layers.values()]
    rank, scale = max(a.shape[-1] for a, _, _ in every), every[0][2]
    lora = Lora(
        rank=rank,
        alpha=scale * rank,
        dropout=float(values.get("lora_dropout", 0.0)),
        targets=tuple(name for name in PROJECTIONS if name in pieces),
        modules_to_save=tuple(params),
        base_dtype=header.get(BASE_DTYPE, "float32"),
    )
    adapters: dict = defaultdict(dict)
    for name in lora.targets:
        adapters[TARGETS[name].module][name] = _stack(pieces[name], cfg.layers, rank, scale)
    return Adapter(
        {"lora": {"blocks": dict(adapters)}, "params": params}, lora, values.get("base_model_name_or_path") or ""
    )


def _name(part: TensorPart) -> str:
    """The last part of the parameter's path: q, k, … for projections."""
    return part.entry.ours.split("/")[-1]


def _joined(parts: list[TensorPart], rows: int, adapters: dict) -> tuple[np.ndarray, np.ndarray]:
    """A [m r, in] and B [rows, m r] of one module that holds m projections, each with its own r columns of B."""
    a = [adapters[_name(part)]["a"][part.layer] for part in parts]
    rank = a[0].shape[-1]
    b = np.zeros((rows, len(parts) * rank), np.float32)
    for i, part in enumerate(parts):
        own = adapters[_name(part)]["b"][part.layer].reshape(rank, -1)
        b[part.start : part.stop, i * rank : (i + 1) * rank] = own.T
    return np.ascontiguousarray(np.concatenate([x.reshape(-1, rank).T for x in a])), b


def _apart(parts: list[TensorPart], a: np.ndarray, b: np.ndarray, blocks: list[str]) -> list[tuple]:
    """(part, A [r, in], its rows of B [out, r]) for each projection of a module; the inverse of `_joined`."""
    held = [part for part in parts if _name(part) in blocks] if len(parts) > 1 else []
    rank = len(a) // len(held) if held else 0
    out, left = [], b.copy()
    for i, part in enumerate(held):
        columns = slice(i * rank, (i + 1) * rank)
        out.append((part, a[columns], b[part.start : part.stop, columns]))
        left[part.start : part.stop, columns] = 0
    if held and not left.any():  # as `save_adapter` wrote it, and not trained since
        return out
    return [(part, a, b[part.start : part.stop]) for part in parts]


def _stack(layers: dict[int, tuple], count: int, rank: int, scale: float) -> dict[str, np.ndarray]:
    """All layers of one projection, filled up with zeros."""
    a0, b0, _ = next(iter(layers.values()))
    a = np.zeros((count, *a0.shape[:-1], rank), np.float32)
    b = np.zeros((count, rank, *b0.shape[1:]), np.float32)
    for layer, (a_, b_, scale_) in layers.items():
        a[layer, ..., : a_.shape[-1]] = a_
        b[layer, : len(b_)] = b_ * np.float32(scale_ / scale)
    return {"a": a, "b": b}


def _embeddings(params: dict, table: Table) -> dict[str, np.ndarray]:
    """Embeddings that were trained in full, by their names. A tied one is stored twice, because PEFT unties it."""
    names = {entry.ours: entry.theirs for entry in table.entries}
    arrays = {name: np.asarray(x, np.float32) for name, x in params.items()}
    out = {names[name]: np.ascontiguousarray(x.T if name == "head" else x) for name, x in arrays.items()}
    if "embed" in params and "head" not in names:
        out[HEAD] = out[names["embed"]].copy()
    return out


def _read_embeddings(tensors: dict[str, Tensor], table: Table, values: dict, folder: Path) -> dict[str, np.ndarray]:
    """The inverse of `_embeddings`. Raises ValueError for tensors that are neither adapters nor embeddings."""
    names = {entry.ours: entry.theirs for entry in table.entries if entry.ours in ("embed", "head")}
    embed, tied = names["embed"], "head" not in names
    if unknown := [name for name in tensors if name not in (embed, HEAD)]:
        raise ValueError(f"{folder}: {few(unknown)} is not supported; adapters of projections, {embed} and {HEAD} are")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != table.shape(embed):
            raise ValueError(f"{folder}: {name} is {list(tensor.shape)}, in the model {list(table.shape(embed))}")
    arrays = {name: tensor.read().astype(np.float32) for name, tensor in tensors.items()}
    if tied and arrays:
        if not (np.array_equal(*arrays.values()) if len(arrays) == 2 else values.get("ensure_weight_tying")):
            raise ValueError(f"{folder}: the model ties its embeddings, and only one of the two was trained")
        return {"embed": next(iter(arrays.values()))}
    out = {name: arrays[theirs] for name, theirs in names.items() if theirs in arrays}
    return out | ({"head": out["head"].T} if "head" in out else {})


def _check_kind(values: dict[str, Any], path: Path) -> None:
    """Raises ValueError for anything but plain LoRA."""
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type={values.get('peft_type')!r} is not read; LORA is")
    for key in ("r", "lora_alpha"):
        if not isinstance(values.get(key), int | float) or values[key] <= 0:
            raise ValueError(f"{path}: {key}={values.get(key)!r}; wanted a positive number")
    if values.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias={values['bias']!r} is not supported: biases were trained as well; merge "
                         "the adapter with PEFT (merge_and_unload) and open the result")  # fmt: skip
    if values.get("init_lora_weights") not in PLAIN_INITS:
        raise ValueError(f"{path}: init_lora_weights={values['init_lora_weights']!r} changed the base model's weights; "
                         "save it in PEFT with path_initial_model_for_weight_conversion")  # fmt: skip
    if odd := sorted(key for key, value in values.items() if value and key not in HARMLESS | READ):
        listed = ", ".join(f"{key}={values[key]!r}" for key in odd)
        raise ValueError(f"{path}: {listed} is not supported, only plain alpha/r · B A is; merge the adapter with "
                         "PEFT (merge_and_unload) and open the result")  # fmt: skip


def _check_fit(factors: dict[str, dict[str, Tensor]], table: Table, values: dict, folder: Path) -> None:
    """Raises ValueError unless every adapter is complete, of a projection of the model, and of its shape."""
    parts = {module: table.parts.get(f"{module}.weight", []) for module in factors}
    if unknown := [module for module in factors if not parts[module] or _name(parts[module][0]) not in TARGETS]:
        raise ValueError(f"{folder}: {few(unknown)} has an adapter but is no projection of this model")
    for module, pair in factors.items():
        rank, (rows, columns) = _pattern(values, "r", module), table.shape(f"{module}.weight")
        for factor, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            if factor not in pair:
                raise ValueError(f"{folder}: {module}.lora_{factor}.weight is missing")
            if pair[factor].shape != shape:
                was = f"{module}.lora_{factor} {list(pair[factor].shape)} instead of {list(shape)}"
                raise ValueError(f"{folder}: shapes do not match the model and {CONFIG}: {was}")


def _pattern(values: dict, key: str, module: str) -> float:
    """`r` or `lora_alpha` of a module: of the first pattern that its name ends in, else the common value."""
    for pattern, value in (values.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return values[key]


def _check_trained(trained: dict, lora: Lora, cfg: ModelConfig) -> None:
    """Raises ValueError unless adapters and embeddings are those of the model and of `lora`."""
    model = nn.unbox(jax.eval_shape(lambda: transformer.init_params(cfg, jax.random.key(0))))
    wanted = {"lora": nn.unbox(jax.eval_shape(lambda: init(cfg, lora, jax.random.key(0))))}
    wanted["params"] = {name: model[name] for name in trained.get("params", {}) if name in ("embed", "head")}
    ours, theirs = ({key: x.shape for key, x in flatten_dict(tree, sep="/").items()} for tree in (trained, wanted))
    if odd := sorted({key for key, _ in ours.items() ^ theirs.items()}):
        listed = "; ".join(f"{key} {ours.get(key)}, wanted {theirs.get(key)}" for key in odd[:3])
        raise ValueError(f"the trained parameters do not match the model and lora: {listed}")
    if not all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(trained)):
        raise ValueError("adapters are spread over several processes: restore them in one process to write them")


def _open(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, and the header of the file."""
    if (folder / WEIGHTS).is_file():
        tensors = read_safetensors(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            return tensors, file.metadata() or {}
    if (folder / PICKLE).is_file():
        return read_pickle(folder / PICKLE), {}
    raise ValueError(f"{folder} holds neither {WEIGHTS} nor {PICKLE}")


def _short(modules: list[str]) -> list[str]:
    """Names as PEFT's users write them. c_proj is in attention and MLP; if only one is meant, the name is longer."""
    last = [module.split(".")[-1] for module in modules]
    long = last.count("c_proj") == 1
    return list(dict.fromkeys(m if long and name == "c_proj" else name for m, name in zip(modules, last)))


def _number(x: float) -> float | int:
    return int(x) if x == int(x) else x
