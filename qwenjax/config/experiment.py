"""One run: what it computes, how (dtype, recomputation, kernels) and on which devices."""

import dataclasses
import math
from dataclasses import dataclass, field, replace

from qwenjax.config import overrides
from qwenjax.config.alignment import RL, Lora, Preference
from qwenjax.config.data import Chat, Data
from qwenjax.config.model import ModelConfig
from qwenjax.config.optim import AdamW, Recovery
from qwenjax.config.overrides import check, one_of

TASKS = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo", "reinforce")
RL_TASKS = TASKS[4:]
REMAT_POLICIES = ("none", "matmuls", "attention", "attn_out", "full")  # least memory last


@dataclass(frozen=True)
class Compute:
    """How a step is computed: dtype, recomputation, kernels. Changes speed and memory, not the result."""

    dtype: str = "bfloat16"  # activations and matmul operands; master parameters and optimizer are float32
    remat: str = "full"  # recomputation, least first: none | matmuls | attention | attn_out | full
    scan: bool = True  # scan over the layers (compile time does not grow with depth), or unroll them
    attention: str = "auto"  # xla | splash (TPU) | cudnn (GPU); auto: the fastest that can do this run
    fuse: str = "auto"  # q k v and gate up as one matmul each: yes | no; auto: on CPU without tensor axis
    loss_chunk: int = 2048  # tokens per device whose logits are in memory at a time

    def __post_init__(self):
        one_of("compute.dtype", self.dtype, ("bfloat16", "float32"))
        one_of("compute.remat", self.remat, REMAT_POLICIES)
        one_of("compute.attention", self.attention, ("auto", "xla", "splash", "cudnn"))
        one_of("compute.fuse", self.fuse, ("auto", "yes", "no"))
        check(self.loss_chunk > 0, "compute.loss_chunk must be positive")

    def resolved(self, platform: str, tensor: int, attention: str = "xla") -> "Compute":
        """The same with every 'auto' replaced, by platform ('cpu', …), size of the mesh axis, and backend."""
        fuse = self.fuse if self.fuse != "auto" else ("yes" if platform == "cpu" and tensor == 1 else "no")
        return replace(self, attention=attention if self.attention == "auto" else self.attention, fuse=fuse)


@dataclass(frozen=True)
class MeshShape:
    """Devices per mesh axis. -1 takes what the other axes leave; `sizes` says what -1 for data and fsdp means."""

    data: int = -1  # replicas of the parameters; slices of a TPU are replicas of each other
    fsdp: int = -1  # parameters, gradients and optimizer are split over this axis, and so is the batch
    tensor: int = 1  # heads, ffn and vocabulary are split over this axis
    context: int = 1  # positions are split over this axis

    def __post_init__(self):
        check(all(n == -1 or n > 0 for n in self._asked), f"mesh axes must be positive or -1, got {self}")
        check(
            self._asked.count(-1) <= 1 or (self.data == self.fsdp == -1 and min(self.tensor, self.context) > 0),
            f"only one mesh axis may be -1, or data and fsdp together, got {self}",
        )

    @property
    def _asked(self) -> tuple[int, ...]:
        return dataclasses.astuple(self)

    def sizes(self, devices: int, embed: int, slices: int = 1) -> dict[str, int]:
        """Size of every axis for a number of devices in equal slices.

        With data and fsdp both -1, fsdp is as large as possible within a slice, with a multiple of 8 of the parameters'
        `embed` rows on each device, and data takes the remaining devices. A TPU holds arrays in tiles of 8 rows: with
        20 rows instead of 40 every matmul of a 14B step takes a fifth longer (compiler's model, v5e-256).

        Raises:
          ValueError: the axes do not multiply to the number of devices, or slices would share parameters.
        """
        fixed = math.prod(n for n in self._asked if n != -1)
        free, uneven = divmod(devices, fixed)
        asked = " x ".join(f"{f.name}={n}" for f, n in zip(dataclasses.fields(self), self._asked))
        if uneven or (-1 not in self._asked and free != 1):
            raise ValueError(
                f"mesh {asked} does not fit {devices} devices; its axes multiply to that, or one is -1 (mesh.fsdp=-1)"
            )
        sizes = dataclasses.asdict(self)
        if self.data == self.fsdp == -1:
            slice_size = free // slices
            even = [n for n in range(1, slice_size + 1) if slice_size % n == 0 and embed % (8 * n) == 0]
            sizes["fsdp"] = max(even, default=1)
            free //= sizes["fsdp"]
        sizes = {axis: free if n == -1 else n for axis, n in sizes.items()}
        if sizes["data"] % slices:
            raise ValueError(
                f"mesh {asked} has data={sizes['data']}, which {slices} slices cannot share: a slice holds whole "
                f"replicas; use a multiple (--set mesh.data={slices} --set mesh.fsdp=-1)"
            )
        return sizes


@dataclass(frozen=True)
class Experiment:
    """One run. The same value trains on a laptop, is compiled for a pod by `plan`, and runs there."""

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
    accumulate: int = 1  # micro-batches that each batch is split into, to save memory; the result is the same
    dropout: float = 0.0  # on the embeddings and the attention probabilities
    seed: int = 0
    init_from: str = ""  # run or checkpoint that gives the first parameters; optimizer and schedule start anew
    log_every: int = 10
    eval_every: int = 1000  # 0: only at the end
    sample_every: int = 0  # samples that continue `prompts`; 0: only at the end
    save_every: int = 1000
    keep: int = 3  # newest checkpoints kept
    keep_every: int = 0  # checkpoints at multiples of this step are kept for good; 0: none
    prompts: tuple[str, ...] = ()

    def __post_init__(self):
        one_of("task", self.task, TASKS)
        check(self.steps > 0, f"steps={self.steps} must be positive")
        batch, length, context = self.data.batch_size, self.data.seq_len, self.model.context
        even = self.accumulate > 0 and batch % self.accumulate == 0
        check(even, f"data.batch_size={batch} does not divide into accumulate={self.accumulate} micro-steps")
        check(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        for name in ("log_every", "save_every", "keep"):
            check(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("eval_every", "sample_every", "keep_every", "seed"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        check(length <= context, f"data.seq_len={length} exceeds model.context={context}; raise that, too")
        check(self.model.gated or not self.lora.rank, "lora.rank: adapters need model.gated=true")
        dpo, preference = self.task == "dpo", self.preference
        check(not (dpo and preference.margin), "preference.margin is for reward models; dpo has preference.beta")
        check(dpo or not preference.smoothing, "preference.smoothing is for dpo; reward models have preference.margin")
        if self.task in RL_TASKS:
            self._check_rl()

    def _check_rl(self) -> None:
        rl, task, batch = self.rl, self.task, self.data.batch_size
        check(rl.max_new_tokens < self.data.seq_len, "rl.max_new_tokens: data.seq_len leaves no room for a prompt")
        check(
            batch % rl.num_samples == 0 and batch % (rl.minibatches * self.accumulate) == 0,
            f"data.batch_size={batch} responses do not divide into rl.num_samples={rl.num_samples} per query and "
            f"rl.minibatches={rl.minibatches} of accumulate={self.accumulate} micro-steps",
        )
        check(task == "ppo" or rl.num_samples > 1, f"rl.num_samples: {task} compares the responses to a prompt; use 2")
        check(self.dropout == 0, f"dropout: the ratios of {task} need the network that sampled; use 0")
        check(self.recovery.deviations == 0, f"recovery.deviations is for losses on fixed data; use 0 with {task}")
        check(task != "grpo" or not rl.kl_target, "rl.kl_target adapts a penalty in the reward; grpo has none, use 0")
        once = task != "reinforce" or rl.epochs * rl.minibatches == 1
        check(once, "rl.epochs, rl.minibatches: reinforce has no ratio that would correct for an older policy; use 1")
        warmup = rl.value_warmup_steps
        check(task != "ppo" or warmup < self.steps, f"rl.value_warmup_steps={warmup} leaves no step to the policy")
        check(rl.ptx_batch % self.accumulate == 0, f"rl.ptx_batch={rl.ptx_batch} does not divide by accumulate")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one batch, padding included; an example of preferences has several responses."""
        sequences = self.preference.responses if self.task in ("reward", "dpo") else 1
        return self.data.batch_size * self.data.seq_len * sequences


def to_dict(experiment: Experiment) -> dict:
    """Plain JSON values: what a run's config.json holds."""
    return dataclasses.asdict(experiment)


def from_dict(values: dict) -> Experiment:
    """The inverse of `to_dict`, typed and checked."""
    return overrides.from_dict(values, Experiment)
