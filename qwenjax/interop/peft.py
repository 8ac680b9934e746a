"""Low-rank adapters in the files of the PEFT library: adapter_config.json and adapter_model.safetensors.

The names are those of `layout.py` behind `base_model.model.`: a projection has `lora_A.weight` [r, in] and
`lora_B.weight` [out, r], and what was trained in full has its own name. In the Qwen-v1 layout q, k and v are rows of
one c_attn: their adapters become one of the summed rank, with B block by block. Others' c_attn adapters have one A for
all three; it is copied.
"""

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwenjax.common.storage import read_json, write_json
from qwenjax.config import PROJECTIONS, Lora, ModelConfig
from qwenjax.interop import Tensor
from qwenjax.interop.huggingface.directory import read_pickle, read_safetensors
from qwenjax.interop.huggingface.layout import Table, TensorPart
from qwenjax.interop.huggingface.save import MADE_BY
from qwenjax.model import transformer
from qwenjax.model.lora import TARGETS, init

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# In the header of a file of ours: which of q, k, v have a block of the c_attn adapters, and `lora.base_dtype`.
BLOCKS, HELD = "qwenjax_blocks", "qwenjax_base"
PREFIX = "base_model.model."
FACTOR = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")
HEAD = "lm_head.weight"

# Fields that say nothing about what an adapter computes, beside those that are read. Any other that is set is refused:
# PEFT grows new ones.
HARMLESS = {
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "modules_to_save", "megatron_core", "runtime_config", "qalora_group_size",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
}  # fmt: skip
READ = {"peft_type", "base_model_name_or_path", "bias", "init_lora_weights", "ensure_weight_tying"}
READ |= {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern"}
PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")  # the others change the base model's weights


class Adapter(NamedTuple):
    """An adapter and how it is to be read."""

    trained: dict  # {"lora": …, "params": what was trained in full}, as `model.lora.variables` takes it; numpy, float32
    lora: Lora  # base: 'float32', the model as it is, if its writer was another program
    base: str  # the model that it was trained on, as its writer called it; may be ''


def save_adapter(
    directory: str | Path, trained: dict, lora: Lora, cfg: ModelConfig, base: str, layout: str = "qwen2"
) -> None:
    """Writes adapters, and embeddings trained in full, so that `peft.PeftModel.from_pretrained` reads them.

    Args:
      trained: {"lora": adapters, "params": {"embed" or "head": …}}, as in training.
      base: path or name of the model beneath, for adapter_config.json.
      layout: of that model: 'qwen' or 'qwen2'.
    Raises:
      ValueError: adapters of another rank or model, arrays that are spread over processes, a model that the layout
        cannot hold, or a directory with an adapter in it that we have not written.
    """
    folder, table = Path(directory), Table(cfg, layout)
    _check_place(folder)
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
    whole = _whole(trained.get("params", {}), table)
    several = {module: n for module, n in modules.items() if n > 1}
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": lora.dropout,
        "bias": "none",
        "target_modules": _short(list(modules)),
        "modules_to_save": [name.split(".")[-2] for name in whole] or None,
        "rank_pattern": {module: n * lora.rank for module, n in several.items()},
        "alpha_pattern": {module: _number(n * lora.alpha) for module, n in several.items()},
        "inference_mode": True,
    }
    header = {**MADE_BY, BLOCKS: " ".join(name for name in "qkv" if name in adapters), HELD: lora.base_dtype}
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        folder / WEIGHTS: folder / f".{WEIGHTS}.{os.getpid()}",
        folder / CONFIG: folder / f".{CONFIG}.{os.getpid()}",
    }
    try:
        save_file({**tensors, **{PREFIX + name: x for name, x in whole.items()}}, made[folder / WEIGHTS], header)
        write_json(made[folder / CONFIG], values)
        for path, new in made.items():
            new.replace(path)
    finally:
        for new in made.values():
            new.unlink(missing_ok=True)


def load_adapter(directory: str | Path, cfg: ModelConfig) -> Adapter:
    """The adapter in a directory, of either layout and for any of the projections of `cfg`.

    We have one rank and one scale for all adapters: smaller ranks are filled up with zeros, and another scale goes into
    B; a layer without an adapter has one of zeros.

    Raises:
      ValueError: no adapter, one of another kind than LoRA with its plain product, or tensors that do not fit the
        model; by name.
    """
    folder = Path(directory)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no {CONFIG}: it is no adapter of the PEFT library")
    values = read_json(folder / CONFIG)
    _check_kind(values, folder / CONFIG)
    tensors, header = _open(folder)
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)  # module -> A and B
    rest = {}
    for name, tensor in tensors.items():
        if match := FACTOR.fullmatch(name):
            factors[match[1]][match[2]] = tensor
        else:
            rest[name.removeprefix(PREFIX)] = tensor
    table = Table(cfg, "qwen" if any(name.startswith("transformer.") for name in (*factors, *rest)) else "qwen2")
    params = _read_whole(rest, table, values, folder)
    _check_fit(factors, table, values, folder)
    pieces: dict[str, dict[int, tuple]] = defaultdict(dict)  # our name -> layer -> a, b, scale
    for module, pair in factors.items():
        a, b = (pair[x].read().astype(np.float32) for x in "AB")
        scale = _pattern(values, "lora_alpha", module) / len(a)
        for part, rows in _apart(table.parts[f"{module}.weight"], a, b, header.get(BLOCKS, "").split()):
            pieces[_name(part)][part.layer] = (*_to_ours(part, table, *rows), scale)
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
        base_dtype=header.get(HELD, "float32"),
    )
    adapters: dict = {}
    for name in lora.targets:
        stacked = _stack(pieces[name], cfg.layers, rank, scale)
        adapters.setdefault(TARGETS[name].module, {})[name] = stacked
    return Adapter({"lora": {"blocks": adapters}, "params": params}, lora, values.get("base_model_name_or_path") or "")


def _name(part: TensorPart) -> str:
    """q, k, … of a projection; anything else of other parameters."""
    return part.row.ours.split("/")[-1]


def _joined(parts: list[TensorPart], rows: int, adapters: dict) -> tuple[np.ndarray, np.ndarray]:
    """A [m r, in] and B [rows, m r] of one module that holds m projections, each with its own r columns of B."""
    a = [adapters[_name(part)]["a"][part.layer] for part in parts]
    rank = a[0].shape[-1]
    b = np.zeros((rows, len(parts) * rank), np.float32)
    for i, part in enumerate(parts):
        b[part.start : part.stop, i * rank : (i + 1) * rank] = (
            adapters[_name(part)]["b"][part.layer].reshape(rank, -1).T
        )
    return np.ascontiguousarray(np.concatenate([x.reshape(-1, rank).T for x in a])), b


def _apart(parts: list[TensorPart], a: np.ndarray, b: np.ndarray, blocks: list[str]) -> list[tuple]:
    """(part, (A, its rows of B)) for each projection that a module holds; the inverse of `_joined`."""
    held = [part for part in parts if _name(part) in blocks] if len(parts) > 1 else []
    rank = len(a) // len(held) if held else 0
    out, left = [], b.copy()
    for i, part in enumerate(held):
        columns = slice(i * rank, (i + 1) * rank)
        out.append((part, (a[columns], b[part.start : part.stop, columns])))
        left[part.start : part.stop, columns] = 0
    if held and not left.any():  # as we wrote it, and nobody has trained it since
        return out
    return [(part, (a, b[part.start : part.stop])) for part in parts]


def _to_ours(part: TensorPart, table: Table, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A [*in, r] and B [r, *out] from [r, in] and [out, r]."""
    target, sizes = TARGETS[_name(part)], table.ours_shape(part.row)
    a = a.T.reshape(*(sizes[i] for i in target.inputs), -1)
    return a, b.T.reshape(-1, *(sizes[i] for i in target.outputs))


def _stack(layers: dict[int, tuple], count: int, rank: int, scale: float) -> dict[str, np.ndarray]:
    """All layers of one projection, with zeros where there is less."""
    a0, b0, _ = next(iter(layers.values()))
    a = np.zeros((count, *a0.shape[:-1], rank), np.float32)
    b = np.zeros((count, rank, *b0.shape[1:]), np.float32)
    for layer, (a_, b_, scale_) in layers.items():
        a[layer, ..., : a_.shape[-1]] = a_
        b[layer, : len(b_)] = b_ * np.float32(scale_ / scale)
    return {"a": a, "b": b}


def _whole(params: dict, table: Table) -> dict[str, np.ndarray]:
    """Embeddings that were trained in full, by their names. A tied one is stored twice: PEFT unties what it saves."""
    rows = {row.ours: row for row in table.rows}
    out = {}
    for name, x in params.items():
        x = np.asarray(x, np.float32)
        out[rows[name].theirs] = np.ascontiguousarray(x.T if name == "head" else x)
    if "embed" in params and "head" not in rows:
        out[HEAD] = out[rows["embed"].theirs].copy()
    return out


def _read_whole(rest: dict[str, Tensor], table: Table, values: dict, folder: Path) -> dict[str, np.ndarray]:
    """The inverse of `_whole`, or ValueError for tensors that are neither adapters nor embeddings of the model."""
    rows = {row.ours: row.theirs for row in table.rows if row.ours in ("embed", "head")}
    embed, tied = rows["embed"], "head" not in rows
    if unknown := [name for name in rest if name not in (embed, HEAD)]:
        raise ValueError(
            f"{folder}: {_few(unknown)} cannot be read; low-rank adapters of projections, {embed} and {HEAD} can"
        )
    for name, tensor in rest.items():
        if tuple(tensor.shape) != table.shape(embed):
            raise ValueError(f"{folder}: {name} is {list(tensor.shape)}, in the model {list(table.shape(embed))}")
    arrays = {name: tensor.read().astype(np.float32) for name, tensor in rest.items()}
    if tied and arrays:
        alike = np.array_equal(*arrays.values()) if len(arrays) == 2 else values.get("ensure_weight_tying")
        if not alike:
            raise ValueError(f"{folder}: the model's input and output embeddings are one, and only one was trained")
        return {"embed": next(iter(arrays.values()))}
    return {
        name: arrays[rows[name]].T if name == "head" else arrays[rows[name]] for name in rows if rows[name] in arrays
    }


def _check_kind(values: dict[str, Any], path: Path) -> None:
    """Refuses what is no plain LoRA."""
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type={values.get('peft_type')!r} is not read; LORA is")
    for key in ("r", "lora_alpha"):
        if not isinstance(values.get(key), int | float) or values[key] <= 0:
            raise ValueError(f"{path}: {key}={values.get(key)!r}; wanted a positive number")
    if values.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias={values['bias']!r} is not read: biases were trained beside the adapters; merge "
                         "the adapter with PEFT (merge_and_unload) and open the result")  # fmt: skip
    if values.get("init_lora_weights") not in PLAIN_INITS:
        raise ValueError(f"{path}: init_lora_weights={values['init_lora_weights']!r} changed the base model's weights; "
                         "save it in PEFT with path_initial_model_for_weight_conversion")  # fmt: skip
    if odd := sorted(key for key, value in values.items() if value and key not in HARMLESS | READ):
        told = ", ".join(f"{key}={values[key]!r}" for key in odd)
        raise ValueError(f"{path}: {told} is not read, only the plain product alpha/r · B A is; merge the adapter with "
                         "PEFT (merge_and_unload) and open the result")  # fmt: skip


def _check_fit(factors: dict[str, dict[str, Tensor]], table: Table, values: dict, folder: Path) -> None:
    """Whether every adapter is whole, of a projection of the model, and of its shape."""
    parts = {module: table.parts.get(f"{module}.weight", []) for module in factors}
    if unknown := [module for module in factors if not parts[module] or _name(parts[module][0]) not in TARGETS]:
        raise ValueError(f"{folder}: {_few(unknown)} has an adapter and is no projection of this model")
    wrong = []
    for module, pair in factors.items():
        rank, (rows, columns) = _pattern(values, "r", module), table.shape(f"{module}.weight")
        for factor, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            if factor not in pair:
                raise ValueError(f"{folder}: {module}.lora_{factor}.weight is missing")
            if tuple(pair[factor].shape) != shape:
                wrong.append(f"{module}.lora_{factor} {list(pair[factor].shape)} instead of {list(shape)}")
    if wrong:
        raise ValueError(f"{folder}: not of the shapes that the model and {CONFIG} say: {_few(wrong)}")


def _pattern(values: dict, key: str, module: str) -> float:
    """`r` or `lora_alpha` of a module: that of the first pattern its name ends in, else the common one."""
    for pattern, value in (values.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return values[key]


def _check_place(folder: Path) -> None:
    """Raises ValueError if another program's adapter, or a file, is in the way."""
    ours = not folder.is_file()
    if (folder / WEIGHTS).exists():
        try:
            with safe_open(folder / WEIGHTS, framework="numpy") as file:
                ours = (file.metadata() or {}).get("made_by") == MADE_BY["made_by"]
        except (SafetensorError, OSError):
            ours = False
    if not ours:
        raise ValueError(f"{folder} is there and was not written by qwenjax: give another directory")


def _check_trained(trained: dict, lora: Lora, cfg: ModelConfig) -> None:
    """Whether adapters and embeddings are those of the model and of `lora`."""
    model = nn.unbox(jax.eval_shape(lambda: transformer.init_params(cfg, jax.random.key(0))))
    wanted = {"lora": nn.unbox(jax.eval_shape(lambda: init(cfg, lora, jax.random.key(0))))}
    wanted["params"] = {name: model[name] for name in trained.get("params", {}) if name in ("embed", "head")}
    shapes = [
        {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (trained, wanted)
    ]
    if odd := sorted({key for key, _ in shapes[0].items() ^ shapes[1].items()}):
        told = "; ".join(f"{key} {shapes[0].get(key)}, wanted {shapes[1].get(key)}" for key in odd[:3])
        raise ValueError(f"what was trained is not of this model and lora: {told}")
    if not all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(trained)):
        raise ValueError("adapters are spread over several processes: restore them in one process to write them")


def _open(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, and what the file's header says."""
    if (folder / WEIGHTS).is_file():
        tensors = read_safetensors(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            return tensors, file.metadata() or {}
    if (folder / PICKLE).is_file():
        return read_pickle(folder / PICKLE), {}
    raise ValueError(f"{folder} holds neither {WEIGHTS} nor {PICKLE}")


def _short(modules: list[str]) -> list[str]:
    """Names as PEFT's users write them. c_proj is in attention and in the MLP; if only one is meant, it says which."""
    both = sum(module.endswith(".c_proj") for module in modules) == 2
    long = {module for module in modules if module.endswith(".c_proj") and not both}
    return list(dict.fromkeys(module if module in long else module.split(".")[-1] for module in modules))


def _number(x: float) -> float | int:
    return int(x) if x == int(x) else x


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
