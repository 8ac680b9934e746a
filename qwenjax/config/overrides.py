"""Dataclass fields from strings and JSON, typed and checked: how `--set a.b=c` and config.json are read."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Any

# Old names of fields, which a script or a run may still use: dataclass -> old name -> new name ("" if it is gone).
# To be deleted with the first release.
RENAMED = {
    "AdamW": {
        "peak": "peak_lr", "floor": "min_lr_ratio", "cooldown": "decay_fraction", "decay": "weight_decay",
        "warmup": "warmup_steps", "clip": "grad_clip",
    },
    "RL": {
        "divide": "normalize_std", "missing_end": "missing_eos_score", "seconds": "reward_timeout",
        "responses": "num_samples", "new_tokens": "max_new_tokens", "lam": "gae_lambda", "clip": "clip_ratio",
        "ptx": "ptx_coef", "ptx_rows": "ptx_batch", "value_steps": "value_warmup_steps", "gold": "gold_reward",
    },
    "Data": {"isolate": "document_mask", "length": "seq_len", "batch": "batch_size"},
    "Compute": {"loss_tokens": "loss_chunk"},
    "ModelConfig": {"head_width": "head_dim"},
    "Lora": {"whole": "modules_to_save", "base": "base_dtype"},
    "Chat": {"policy": "loss_mask"},
    "Preference": {"calibrate": ""},
}  # fmt: skip


class Renamed(ValueError):
    """A field has an old name."""


def check(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError, naming the nearest, for a value that is not among those known."""
    check(value in known, f"{field}={value!r} is unknown; known: {', '.join(known)}.{suggest(value, known)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'X'?" for the nearest of the known names, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def override(value: Any, settings: dict[str, Any]) -> Any:
    """The dataclass with `{"optim.peak_lr": 1e-3, "data.sources.0.text": "books/"}` applied, typed and checked.

    Values are Python values or strings from a command line. The order of settings does not matter.

    Raises:
      ValueError: unknown field (the nearest one is named), wrong type, or a value that the dataclass refuses.
    """
    values = json.loads(json.dumps(dataclasses.asdict(value)))
    for path, new in sorted(settings.items()):  # a field as a whole comes before its parts, which are then refused
        node, names = values, path.split(".")
        for i, name in enumerate(names):
            where = ".".join(names[:i])
            if isinstance(node, list):
                if name not in map(str, range(len(node))):
                    raise ValueError(f"no field {name!r} in {where}; it has {len(node)}")
                name = int(name)
            elif not isinstance(node, dict):
                raise ValueError(f"{where} is a single value and has no field {name!r}")
            if i == len(names) - 1:
                # a dataclass as JSON, so that its fields can be set after it
                node[name] = json.loads(new) if isinstance(new, str) and new.startswith("{") else new
            else:
                node = node[name] if isinstance(node, list) else node.setdefault(name, {})
    return from_dict(values, type(value))


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` (a JSON value, or a string from the command line) as the annotated type `hint` of the field `where`."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if value in (None, "none", "None") else convert(value, kinds[0], where)
    if origin is tuple:
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("[") else [v for v in value.split(",") if v]
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}={value!r}: wanted a list")
        return tuple(convert(v, typing.get_args(hint)[0], f"{where}.{i}") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, str) and value.startswith("{"):
            value = json.loads(value)
        if not isinstance(value, dict):
            names = ", ".join(field.name for field in dataclasses.fields(hint))
            raise ValueError(f"{where}={value!r}: wanted the fields of {hint.__name__}: {names}")
        return from_dict(value, hint, where)
    if hint is bool:
        named = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in named:
            raise ValueError(f"{where}={value!r}: wanted true or false")
        return named[str(value).lower()]
    if hint in (int, float):
        try:
            text = str(value).replace("_", "")
            number = float(text)
            if isinstance(value, bool) or (hint is int and number != int(number)):
                raise ValueError
            return int(text) if hint is int and text.lstrip("-").isdigit() else hint(number)
        except (ValueError, OverflowError):
            raise ValueError(f"{where}={value!r}: wanted {'a whole number' if hint is int else 'a number'}") from None
    if hint is str and hasattr(value, "__fspath__"):
        return value.__fspath__()
    if not isinstance(value, hint):
        raise ValueError(f"{where}={value!r}: wanted {hint.__name__}")
    return value


def from_dict(values: dict, cls: type, where: str = "") -> Any:
    """The inverse of `dataclasses.asdict`, checked. ValueError names a field that is unknown, missing or ill-typed."""
    hints = typing.get_type_hints(cls)
    for name in sorted(set(values) - set(hints)):
        if name in RENAMED.get(cls.__name__, {}):
            new, place = RENAMED[cls.__name__][name], where + "." if where else ""
            raise Renamed(f"{place}{name} " + (f"is now called {place}{new}" if new else "no longer exists"))
        known = f"known: {', '.join(hints)}.{suggest(name, hints)}"
        raise ValueError(f"no field {name!r} in {where or cls.__name__}; {known}")
    try:
        return cls(**{k: convert(v, hints[k], f"{where}.{k}".lstrip(".")) for k, v in values.items()})
    except TypeError as error:  # a required field is missing
        raise ValueError(f"{where or cls.__name__}: {error}") from None
