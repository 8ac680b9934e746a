"""Dataclass fields from strings and JSON, typed and checked: how `--set a.b=c` and config.json are read."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import replace
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

    Values are Python values or strings from a command line. All settings are applied before the dataclasses check
    themselves, so their order does not matter.

    Raises:
      ValueError: unknown field (the nearest one is named), wrong type, or a value that the dataclass refuses.
    """
    return _rebuild(value, {tuple(path.split(".")): value for path, value in settings.items()}, ())


def _unknown(name: str, known: list[str], cls: str, where: str) -> str:
    """The message about a field that a dataclass does not have; for a renamed field it has the new name."""
    if name in RENAMED.get(cls, {}):
        old, new = (f"{where}.{word}".lstrip(".") for word in (name, RENAMED[cls][name]))
        return f"{old} is now called {new}" if RENAMED[cls][name] else f"{old} no longer exists"
    return f"no field {name!r} in {where or cls}; known: {', '.join(known)}.{suggest(name, known)}"


def _rebuild(node: Any, settings: dict[tuple, Any], at: tuple) -> Any:
    """`node` with the settings below path `at` applied."""
    if isinstance(node, tuple):
        names = [str(i) for i in range(len(node))]
    else:
        names = [f.name for f in dataclasses.fields(node)]
    changes: dict[str, Any] = {}
    for name in sorted({path[0] for path in settings}):
        where = ".".join((*at, name))
        if name not in names:
            raise ValueError(_unknown(name, names, type(node).__name__, ".".join(at)))
        inner = {path[1:]: value for path, value in settings.items() if path[0] == name}
        old = node[int(name)] if isinstance(node, tuple) else getattr(node, name)
        if () not in inner:
            if not (dataclasses.is_dataclass(old) or (isinstance(old, tuple) and old)):
                raise ValueError(f"{where} is a single value and has no field {'.'.join(next(iter(inner)))!r}")
            changes[name] = _rebuild(old, inner, (*at, name))
        elif len(inner) > 1:
            raise ValueError(f"{where} is set both as a whole and in part")
        else:
            hint = type(old) if isinstance(node, tuple) else typing.get_type_hints(type(node))[name]
            changes[name] = convert(inner[()], hint, where)
    if isinstance(node, tuple):
        return tuple(changes.get(str(i), item) for i, item in enumerate(node))
    return replace(node, **changes)


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` (a JSON value, or a string from the command line) as the annotated type `hint`.

    Raises:
      ValueError: names the field `where`, the value and what is wanted.
    """
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
            number = float(str(value).replace("_", ""))
            if isinstance(value, bool) or (hint is int and number != int(number)):
                raise ValueError
            return (
                int(str(value).replace("_", "")) if hint is int and str(value).lstrip("-").isdigit() else hint(number)
            )
        except (ValueError, OverflowError):
            raise ValueError(f"{where}={value!r}: wanted {'a whole number' if hint is int else 'a number'}") from None
    if hint is str and hasattr(value, "__fspath__"):
        return value.__fspath__()
    if not isinstance(value, hint):
        raise ValueError(f"{where}={value!r}: wanted {hint.__name__}")
    return value


def from_dict(values: dict, cls: type, where: str = "") -> Any:
    """A dataclass from plain JSON values, typed and checked: the inverse of `dataclasses.asdict`.

    Raises:
      ValueError: names the field that is unknown, missing or of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        message = _unknown(unknown[0], list(hints), cls.__name__, where)
        if unknown[0] in RENAMED.get(cls.__name__, {}):
            message += "; these settings are of an earlier version: correct them in config.json, or start the run again"
        raise ValueError(message)
    try:
        return cls(**{k: convert(v, hints[k], f"{where}.{k}".lstrip(".")) for k, v in values.items()})
    except TypeError as error:  # a required field is missing
        raise ValueError(f"{where or cls.__name__}: {error}") from None
