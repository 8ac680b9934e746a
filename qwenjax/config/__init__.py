"""Everything an experiment fills in: frozen dataclasses, checked at construction, sizes as data.

No jax, no files: these load in milliseconds, so `--help` and `--print-config` are instant. Recipe defaults are the
pretraining recipe of report §2.4.
"""

from qwenjax.config.alignment import PROJECTIONS, RL, Lora, Preference
from qwenjax.config.compute import REMAT_POLICIES, Compute, MeshShape
from qwenjax.config.data import INIT_FROM, Chat, ChatFile, Data, Source
from qwenjax.config.experiment import RL_TASKS, TASKS, Experiment, from_dict, to_dict
from qwenjax.config.model import (
    QWEN_1B8,
    QWEN_7B,
    QWEN_14B,
    QWEN_72B,
    SMOLLM2_135M,
    ModelConfig,
    RopeScaling,
    doubling_windows,
)
from qwenjax.config.optim import SCHEDULES, AdamW, Recovery

__all__ = [
    "INIT_FROM",
    "PROJECTIONS",
    "QWEN_1B8",
    "QWEN_7B",
    "QWEN_14B",
    "QWEN_72B",
    "REMAT_POLICIES",
    "RL",
    "RL_TASKS",
    "SCHEDULES",
    "SMOLLM2_135M",
    "TASKS",
    "AdamW",
    "Chat",
    "ChatFile",
    "Compute",
    "Data",
    "Experiment",
    "Lora",
    "MeshShape",
    "ModelConfig",
    "Preference",
    "Recovery",
    "RopeScaling",
    "Source",
    "doubling_windows",
    "from_dict",
    "to_dict",
]
