"""Options that commands with a model share: which model, and how it samples."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from qwenjax.common.command_line import Usage, keep_programs, natural, positive
from qwenjax.common.processes import quiet_logs
from qwenjax.config.lookup import settings

if TYPE_CHECKING:
    from qwenjax.api.model import Model
    from qwenjax.api.reward_model import RewardModel

MODEL = """
--model=PATH; the format is detected from the files:
  a directory with config.json           of the Hugging Face hub: Qwen, Qwen1.5 to 3, Llama; GPTQ Int4 and Int8
  a directory with adapter_config.json   low-rank adapters of PEFT, merged into the model that they name
  FILE.gguf                              the same models, with the vocabulary in the file
  a run, or one of its checkpoints       written by `qwenjax.train`; the newest complete checkpoint
"""


def model_arguments(add) -> None:
    """Declares --model, --set and --dtype."""
    add("--model", required=True, metavar="PATH", help="a directory, .gguf or run; see below")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the model's config, e.g. ntk=true, logn=true, rope_scaling.factor=4; may be repeated",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="of parameters (default: float32 on CPUs, else bfloat16)")


def load_model(options: argparse.Namespace) -> "Model":
    """The model of the options; compiled programs are cached for the next start."""
    quiet_logs()
    keep_programs()
    from qwenjax import api

    model = api.load(options.model, None, options.dtype, **overrides(options))
    for note in model.generation_defaults.notes:
        print(f"note: {note}", file=sys.stderr)
    for name in ("kv_cache", "frozen_ntk"):  # commands that only score have no such options
        setattr(model, name, getattr(options, name, getattr(model, name)))
    return model


def load_reward(path: str, dtype: str | None) -> "RewardModel":
    """The reward model at a path; compiled programs are cached as well."""
    quiet_logs()
    keep_programs()
    from qwenjax.api import reward_model

    return reward_model.load_reward(path, dtype)


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The fields of --set. Raises Usage for anything that is not FIELD=VALUE."""
    try:
        return settings(options.set)
    except ValueError as error:
        raise Usage(str(error)) from None


def sampling_arguments(add) -> None:
    """Declares how to sample and decode; without an option the release decides, or decoding is greedy."""
    add("--temperature", type=float, metavar="X", help="divides the logits; 0 is greedy")
    add("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that together have this probability")
    add("--top-k", type=natural, metavar="K", help="sample from the K likeliest tokens; 0 is all")
    add("--repetition-penalty", type=float, metavar="X", help="tokens of the text are less likely to recur; 1 is off")
    add("--max-new-tokens", type=positive, metavar="N", help="limit of new tokens (default: the release's, or 512)")
    add("--seed", type=natural, default=0, metavar="N", help="seed of sampling (default: 0)")
    add(
        "--kv-cache",
        choices=("plain", "int8", "int8_released"),
        default="plain",
        help="int8: about half the memory of bfloat16; int8_released: quantised as the released code does",
    )
    add(
        "--frozen-ntk",
        action="store_true",
        help="with ntk=true: keep the rotary base that the prompt's length gives, as the released code does",
    )


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `sampling_arguments` that were given, without the seed."""
    from qwenjax.api.generation_defaults import SAMPLING

    values = {key: getattr(options, key) for key in (*SAMPLING, "max_new_tokens")}
    return {key: value for key, value in values.items() if value is not None}


def sampling(options: argparse.Namespace, model: "Model") -> tuple[Any, int]:
    """How to sample, as the options ask, and the limit of new tokens."""
    given = sampling_options(options)
    limit = given.pop("max_new_tokens", model.generation_defaults.max_new_tokens)
    try:
        return model.generation_defaults.sampler(**given), limit
    except ValueError as error:
        raise Usage(str(error)) from None
