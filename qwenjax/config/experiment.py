"""One run, all of it; the same value trains on a laptop, is compiled for a pod, and runs there."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from qwenjax.config import overrides
from qwenjax.config.alignment import RL, Lora, Preference
from qwenjax.config.checks import check, one_of
from qwenjax.config.compute import Compute, MeshShape
from qwenjax.config.data import Chat, Data
from qwenjax.config.model import ModelConfig
from qwenjax.config.optim import AdamW, Recovery

TASKS = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo", "reinforce")
RL_TASKS = TASKS[4:]


@dataclass(frozen=True)
class Experiment:
    """One run: the same value trains on a laptop, is compiled for a pod by `plan`, and runs there."""

    name: str
    model: ModelConfig
    data: Data
    steps: int
    task: str = "pretrain"
    optim: AdamW = field(default_factory=AdamW)
    chat: Chat = field(default_factory=Chat)
    lora: Lora = field(default_factory=Lora)
    preference: Preference = field(default_factory=Preference)
    rl: RL = field(default_factory=RL)
    recovery: Recovery = field(default_factory=Recovery)
    compute: Compute = field(default_factory=Compute)
    mesh: MeshShape = field(default_factory=MeshShape)
    accumulate: int = 1  # micro-steps per optimizer step; the batch is split, the result is the same
    dropout: float = 0.0  # on the embeddings and the attention probabilities
    seed: int = 0
    init_from: str = ""  # a run or checkpoint whose parameters this one starts from, with fresh optimizer and schedule
    log_every: int = 10
    eval_every: int = 1000  # 0: only at the end
    sample_every: int = 0  # 0: only at the end; texts continue `prompts`
    save_every: int = 1000
    keep: int = 3  # newest checkpoints kept
    keep_every: int = 0  # checkpoints at multiples of this many steps are kept for good; 0: none
    prompts: tuple[str, ...] = ()

    def __post_init__(self):
        one_of("task", self.task, TASKS)
        check(self.steps > 0, f"steps={self.steps} must be positive")
        check(
            self.accumulate > 0 and self.data.batch_size % self.accumulate == 0,
            f"data.batch_size={self.data.batch_size} does not divide into accumulate={self.accumulate} micro-steps",
        )
        check(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        for name in ("log_every", "save_every", "keep"):
            check(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("eval_every", "sample_every", "keep_every", "seed"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check(
            self.data.seq_len <= self.model.context,
            f"data.seq_len={self.data.seq_len} exceeds model.context={self.model.context}: "
            "context extension is for inference; raise model.context to train longer",
        )
        check(self.model.gated or not self.lora.rank, "lora.rank: adapters are for the projections of gated models")
        check(
            self.task != "dpo" or not self.preference.margin,
            f"preference.margin={self.preference.margin} is of reward models; dpo has preference.beta",
        )
        check(
            self.task == "dpo" or not self.preference.smoothing,
            f"preference.smoothing={self.preference.smoothing} is of dpo; a reward model has preference.margin",
        )
        if self.task in RL_TASKS:
            self._check_rl()

    def _check_rl(self) -> None:
        rl, batch = self.rl, self.data.batch_size
        check(
            rl.max_new_tokens < self.data.seq_len,
            f"rl.max_new_tokens={rl.max_new_tokens} leaves no room for a prompt in data.seq_len={self.data.seq_len}",
        )
        check(
            batch % rl.num_samples == 0 and batch % (rl.minibatches * self.accumulate) == 0,
            f"data.batch_size={batch} responses do not divide into rl.num_samples={rl.num_samples} per query and "
            f"rl.minibatches={rl.minibatches} of accumulate={self.accumulate} micro-steps",
        )
        check(
            self.task == "ppo" or rl.num_samples > 1,
            f"{self.task} compares the responses to one prompt; rl.num_samples={rl.num_samples} is too few",
        )
        check(self.dropout == 0, f"dropout={self.dropout}: {self.task} learns from what the whole network wrote; use 0")
        check(
            self.recovery.deviations == 0,
            f"recovery.deviations={self.recovery.deviations} is for losses that do not depend on the model's own "
            f"samples; use 0 with {self.task}",
        )
        check(
            self.task != "grpo" or not rl.kl_target,
            "rl.kl_target adapts a penalty in the reward; grpo's is in its loss",
        )
        check(
            self.task != "reinforce" or rl.epochs * rl.minibatches == 1,
            f"rl.epochs={rl.epochs}, rl.minibatches={rl.minibatches}: reinforce has no ratio that would correct for "
            "responses of an older policy; use 1 of each",
        )
        check(
            self.task != "ppo" or rl.value_warmup_steps < self.steps,
            f"rl.value_warmup_steps={rl.value_warmup_steps} of steps={self.steps} leave none to the policy; "
            "lower rl.value_warmup_steps",
        )
        check(rl.ptx_batch % self.accumulate == 0, f"rl.ptx_batch={rl.ptx_batch} does not divide by accumulate")

    @property
    def tokens_per_step(self) -> int:
        each = self.preference.responses if self.task in ("reward", "dpo") else 1  # rows of a list
        return self.data.batch_size * self.data.seq_len * each

    def compute_on(self, platform: str, mesh: Mapping[str, int]) -> Compute:
        """`compute` with every 'auto' decided for a platform ('cpu', 'gpu', 'tpu') and sizes of mesh axes."""
        width, length, context = self.model.head_size, self.data.seq_len, mesh["context"]
        chunks = 1 if context == 1 else 2 * context  # model/zigzag.py
        whole = not self.dropout and self.model.kv % mesh["tensor"] == 0  # no kernel drops, or splits a KV head
        whole = whole and len(set(self.model.windows)) < 2  # and all layers run the same one
        splash = whole and width % 128 == 0 and length % (128 * chunks) == 0
        cudnn = whole and width % 8 == 0 and width <= 128 and length % 2 == 0 and context == 1
        able = {"tpu": splash, "gpu": cudnn and self.compute.dtype == "bfloat16"}
        kernel = {"tpu": "splash", "gpu": "cudnn"}[platform] if able.get(platform) else "xla"
        return self.compute.resolved(platform, mesh["tensor"], kernel)


def to_dict(experiment: Experiment) -> dict:
    """Plain JSON values: what a run's config.json holds."""
    return dataclasses.asdict(experiment)


def from_dict(values: dict) -> Experiment:
    """The inverse of `to_dict`, typed and checked.

    Raises:
      ValueError: naming the field that is unknown, missing or of the wrong type.
    """
    return overrides.from_dict(values, Experiment)
