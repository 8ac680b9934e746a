"""How a run computes: dtype, recomputation, kernels, and the devices of the mesh."""

import dataclasses
import math
from dataclasses import dataclass, replace

from qwenjax.config.checks import check, one_of

REMAT_POLICIES = ("none", "matmuls", "attention", "attn_out", "full")


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
    loss_chunk: int = 2048  # tokens per device whose logits exist at one time

    def __post_init__(self):
        one_of("compute.dtype", self.dtype, ("bfloat16", "float32"))
        one_of("compute.remat", self.remat, REMAT_POLICIES)
        one_of("compute.attention", self.attention, ("auto", "xla", "splash", "cudnn"))
        one_of("compute.fuse", self.fuse, ("auto", "yes", "no"))
        check(self.loss_chunk > 0, "compute.loss_chunk must be positive")

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
