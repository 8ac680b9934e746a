"""How a run computes: kernels and memory, mesh, optimizer, recovery."""

import dataclasses
import math
from dataclasses import dataclass, replace

from qwenjax.config.checks import check, one_of

REMAT_POLICIES = ("none", "matmuls", "attention", "attn_out", "full")
SCHEDULES = ("cosine", "linear", "wsd", "constant")


@dataclass(frozen=True)
class Compute:
    """How the same mathematics is computed: dtype, recomputation, kernels. Changes speed and memory, not meaning."""

    dtype: str = "bfloat16"  # activations and matmul operands; master parameters and optimizer are float32
    remat: str = "full"  # what backward keeps of a layer, most first: none | matmuls | attention | attn_out | full
    scan: bool = True  # scan over layers (compile time independent of depth) or unrolled
    attention: str = "auto"  # xla | splash (TPU) | cudnn (GPU); auto: the fastest that can do what the run asks for
    fuse: str = (
        "auto"  # one matmul per group of projections (yes) or one each (no); auto: yes on CPU without tensor axis
    )
    loss_tokens: int = 2048  # tokens per device whose logits exist at one time

    def __post_init__(self):
        one_of("compute.dtype", self.dtype, ("bfloat16", "float32"))
        one_of("compute.remat", self.remat, REMAT_POLICIES)
        one_of("compute.attention", self.attention, ("auto", "xla", "splash", "cudnn"))
        one_of("compute.fuse", self.fuse, ("auto", "yes", "no"))
        check(self.loss_tokens > 0, "compute.loss_tokens must be positive")

    def resolved(self, platform: str, tensor: int, attention: str = "xla") -> "Compute":
        """The same choices with every 'auto' decided.

        Args:
          platform: 'cpu', 'gpu' or 'tpu'. tensor: size of the mesh axis.
          attention: the backend that 'auto' stands for; `Experiment.compute_on` knows which can do the run.
        """
        fuse = self.fuse if self.fuse != "auto" else ("yes" if platform == "cpu" and tensor == 1 else "no")
        return replace(self, attention=attention if self.attention == "auto" else self.attention, fuse=fuse)


@dataclass(frozen=True)
class MeshShape:
    """Devices per mesh axis. -1 takes what the others leave; see `sizes` for when both data and fsdp are -1."""

    data: int = -1  # replicas of the parameters; several slices are replicas of each other
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
        """Sizes by axis for so many devices, in equal slices.

        With data and fsdp both -1, fsdp is as large as can be: within a slice, and with multiples of 8 of the
        parameters' `embed` rows on each device. A TPU holds arrays in tiles of 8 rows; with 20 rows instead of 40
        every product of a 14B step takes a fifth longer (compiler's model, v5e-256). data takes the rest.

        Raises:
          ValueError: the axes do not multiply to the number of devices, or slices would share parameters.
        """
        fixed = math.prod(n for n in self._asked if n != -1)
        rest, uneven = divmod(devices, fixed)
        asked = " x ".join(f"{f.name}={n}" for f, n in zip(dataclasses.fields(self), self._asked))
        if uneven or (-1 not in self._asked and rest != 1):
            raise ValueError(
                f"mesh {asked} does not fit {devices} device{'s' * (devices > 1)}; "
                "axes must multiply to the device count, one may be -1 (--set mesh.fsdp=-1)"
            )
        sizes = dataclasses.asdict(self)
        if self.data == self.fsdp == -1:
            whole = rest // slices  # of one slice
            even = [n for n in range(1, whole + 1) if whole % n == 0 and embed % (8 * n) == 0]
            sizes["fsdp"] = max(even, default=1)
            rest //= sizes["fsdp"]
        sizes = {axis: rest if n == -1 else n for axis, n in sizes.items()}
        if sizes["data"] % slices:
            raise ValueError(
                f"mesh {asked} has data={sizes['data']}, which {slices} slices cannot share: between slices only "
                f"whole replicas; use a multiple (--set mesh.data={slices} --set mesh.fsdp=-1)"
            )
        return sizes


@dataclass(frozen=True)
class AdamW:
    """Optimizer and schedule; the defaults are the report's (§2.4; warm-up, decay and clip from the tech memo)."""

    peak: float = 3e-4
    schedule: str = "cosine"  # cosine | linear | wsd (warm-up, stable, decay) | constant; all start with the warm-up
    warmup: int = 2000
    floor: float = 0.1  # last learning rate as a fraction of the peak
    cooldown: float = 0.2  # wsd: the last fraction of the steps decays
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    decay: float = 0.1  # on matrices only
    clip: float = 1.0  # global gradient norm

    def __post_init__(self):
        check(self.peak > 0, f"optim.peak={self.peak} must be positive")
        one_of("optim.schedule", self.schedule, SCHEDULES)
        check(self.warmup >= 0, f"optim.warmup={self.warmup} must not be negative")
        check(0 <= self.floor <= 1 and 0 < self.cooldown <= 1, "optim.floor and optim.cooldown are fractions of 1")
        check(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"optim betas must lie in [0, 1), got {self.b1}, {self.b2}")
        check(self.clip > 0, f"optim.clip={self.clip} must be positive")


@dataclass(frozen=True)
class Recovery:
    """What a run does when loss or gradient norm leap out of their recent range: leave the batch out, then rewind.

    Off by default, so that a small run shows its troubles; one of months needs it. What is usual is the median of the
    last steps, a leap is measured in their (robust) standard deviations.
    """

    deviations: float = 0.0  # beyond so many a batch is left out; 8 is far outside noise. 0: off, and NaN ends the run
    window: int = 128  # steps that say what is usual; until there are so many, only what is not finite is left out
    spikes: int = 3  # so many leaps …
    among: int = 10  # … in so many batches: back to the checkpoint before them, and on behind their rows
    rewinds: int = 3  # in one place, each a checkpoint further back; then the run stops

    def __post_init__(self):
        check(self.deviations >= 0, f"recovery.deviations={self.deviations} must not be negative; 0: off")
        check(self.window > 1, f"recovery.window={self.window} must be at least 2")
        check(0 < self.spikes <= self.among, "recovery.spikes must be 1 to recovery.among")
        check(self.rewinds >= 0, f"recovery.rewinds={self.rewinds} must not be negative")
