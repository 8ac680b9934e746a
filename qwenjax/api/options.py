"""Options that commands with a model share: which model, and how it samples."""

import argparse
from typing import TYPE_CHECKING, Any

from qwenjax.common.command_line import Usage, keep_programs, natural, positive
from qwenjax.common.processes import quiet_logs
from qwenjax.config.lookup import settings

if TYPE_CHECKING:
    from qwenjax.api.model import Model
    from qwenjax.api.reward_model import RewardModel

MODEL = """
--model=PATH is found out by looking at the files:
  a directory of the Hugging Face form   Qwen, Qwen1.5 to 3, Llama and what is shaped like it; GPTQ of Int4 and Int8
  a directory with adapter_config.json   low-rank adapters of PEFT, merged into the model that they name
  FILE.gguf                              the same models, with the vocabulary that lies inside
  a run, or one of its checkpoints       what `qwenjax.train` made; its newest whole checkpoint
"""


SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")  # options by which a policy differs from the release


def model_arguments(add) -> None:
    """Declares --model, --set and --dtype."""
    add("--model", required=True, metavar="PATH", help="a directory, .gguf or run, see below")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the model's config, e.g. ntk=true, logn=true, rope_scaling.factor=4; may be repeated",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="of parameters (default: float32 on CPUs, else bfloat16)")


def load_model(options: argparse.Namespace) -> "Model":
    """The model of --model, --set and --dtype; its programs are kept for the next start."""
    quiet_logs()
    keep_programs()
    from qwenjax import api

    return api.load(options.model, None, options.dtype, **overrides(options))


def load_reward(path: str, dtype: str | None) -> "RewardModel":
    """The reward model at a path; its programs are kept, too."""
    quiet_logs()
    keep_programs()
    from qwenjax.api import reward_model

    return reward_model.load_reward(path, dtype)


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """What --set asks for. Raises Usage for one that is no FIELD=VALUE."""
    try:
        return settings(options.set)
    except ValueError as error:
        raise Usage(str(error)) from None


def sampling_arguments(add) -> None:
    """Declares how to sample; what is not given is as the release says, or greedy."""
    add("--temperature", type=float, metavar="X", help="divides the logits; 0 is greedy")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that have this probability together")
    add("--top-k", type=natural, metavar="K", help="draw from the K likeliest tokens; 0 is all")
    add("--repetition-penalty", type=float, metavar="X", help="makes tokens that were there less likely; 1 does not")
    add("--max-new-tokens", type=positive, metavar="N", help="the longest answer (default: as released, or 512)")
    add("--seed", type=natural, default=0, metavar="N", help="of the draws (default: 0)")


def sampling(options: argparse.Namespace, model: "Model") -> tuple[Any, int]:
    """The policy that the options ask for, and the limit of new tokens."""
    asked = {key: getattr(options, key) for key in SAMPLING if getattr(options, key) is not None}
    try:
        policy = model.policy(**asked)
    except ValueError as error:
        raise Usage(str(error)) from None
    return policy, options.max_new_tokens or model.habits.sampling.get("max_new_tokens", 512)
