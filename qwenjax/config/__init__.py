"""What an experiment fills in: frozen dataclasses that check themselves when they are made.

No jax and no files (only lookup.py reads them): this loads in milliseconds, so `--help` and `--print-config` are
instant. Defaults are the pretraining recipe of report §2.4.
"""

from qwenjax.config.alignment import PROJECTIONS, RL, Lora, Preference
from qwenjax.config.data import INIT_FROM, Chat, ChatFile, Data, Source
from qwenjax.config.experiment import (
    REMAT_POLICIES,
    RL_TASKS,
    TASKS,
    Compute,
    Experiment,
    MeshShape,
    from_dict,
    to_dict,
)
from qwenjax.config.model import (
    QWEN_1B8,
    QWEN_7B,
    QWEN_14B,
    QWEN_72B,
    QWEN_SIZES,
    SMOLLM2_135M,
    ModelConfig,
    RopeScaling,
    doubling_windows,
)
from qwenjax.config.optim import SCHEDULES, AdamW, Recovery
