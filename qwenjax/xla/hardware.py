"""Everything the package knows about chips: peaks, memory, networks, and the names under which TPU slices are rented.

The figures are from the makers' data sheets; the speeds of links inside a slice are not confirmed by measurement.
"""

import os
import re
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Chip:
    """One kind of TPU. Speeds and memory are of one jax device: a whole chip, except for tpu7x."""

    name: str
    device_kind: str  # of jax.Device; a prefix; the longest one that fits counts
    flops: float  # dense bf16 FLOP/s
    memory: int  # bytes of HBM
    clock: float  # cycles per second, the compiler's unit of time
    ici_bandwidth: float  # bytes per second of one torus axis, both ways together
    dcn_bandwidth: float  # bytes per second to other slices
    named_cores: int  # 2 where the names of slices count TensorCores (v5p-256 has 128 chips), 1 where they count chips
    torus_axes: int
    max_chips: int  # of a slice
    accelerator: str  # Google Cloud's name
    runtime: str  # image of the VMs
    libtpu_config: str = "default"  # megacore: two cores are one device
    devices: int = 1  # of a chip


# Runtimes: cloud.google.com/tpu/docs/runtimes, table "PyTorch and JAX". tpu7x is not in it yet; its image is the one of
# Google's own Ironwood benchmarks. `gcloud compute tpus tpu-vm versions list --zone=ZONE` prints the current list.
# fmt: off
TPUS = (
    # name, kind,              FLOP/s,  memory,    clock,  ICI,    DCN,    cores, axes, chips, Google's name, image
    Chip("v4", "TPU v4",       275e12,   32 << 30, 1.05e9, 9e10,   3.1e9,  2, 3, 4096, "v4", "tpu-ubuntu2204-base",
         libtpu_config="megacore"),
    Chip("v5e", "TPU v5 lite", 197e12,   16 << 30, 1.5e9,  9e10,   3.1e9,  1, 2, 256, "v5litepod",
         "v2-alpha-tpuv5-lite"),
    Chip("v5p", "TPU v5",      459e12,   95 << 30, 1.75e9, 1.8e11, 6.2e9,  2, 3, 8960, "v5p", "v2-alpha-tpuv5",
         libtpu_config="megacore"),
    Chip("v6e", "TPU v6 lite", 918e12,   32 << 30, 1.75e9, 1.8e11, 12.5e9, 1, 2, 256, "v6e", "v2-alpha-tpuv6e"),
    # The clock is not published; it follows from the peak, for four matrix units of 256 x 256 per core.
    Chip("tpu7x", "TPU7x",     1153.5e12, 96 << 30, 2.2e9, 1.8e11, 6.2e9,  2, 3, 9216, "tpu7x",
         "v2-alpha-tpu7-ubuntu2404", devices=2),
)
# fmt: on
CHIPS = {chip.name: chip for chip in TPUS}
GPU_FLOPS = {  # dense bf16 FLOP/s
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of a TPU or GPU that jax names so; None if it is unknown."""
    peaks = {chip.device_kind: chip.flops for chip in TPUS} | GPU_FLOPS
    names = [name for name in peaks if device_kind.startswith(name)]
    return peaks[max(names, key=len)] if names else None


@dataclass(frozen=True)
class Topology:
    """Some slices of one kind; chips and devices are counted in all slices."""

    name: str
    chip: Chip
    grid: tuple[int, ...]  # chips of a slice along each axis of the torus
    slices: int = 1

    @property
    def chips(self) -> int:
        return prod(self.grid) * self.slices

    @property
    def device_count(self) -> int:
        return self.chips * self.chip.devices

    @property
    def axes(self) -> int:
        """Torus axes with more than one chip: those that a ring can use."""
        return max(1, sum(n > 1 for n in self.grid))

    def devices(self) -> list:
        """Devices to compile for.

        Raises:
          ValueError: libtpu, which brings the compiler, is not installed, or knows no such slice.
        """
        from importlib.util import find_spec

        from jax.experimental import topologies

        if find_spec("libtpu") is None:
            raise ValueError("plan needs the TPU compiler: pip install 'qwenjax[tpu-aot]' (x86, no TPU needed)")

        shape = "x".join(map(str, self.grid))
        try:
            described = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{self.chip.name}:{shape}",
                chip_config_name=self.chip.libtpu_config,
                num_slices=self.slices,
            )
        except Exception as error:  # libtpu's own errors, of many kinds
            raise ValueError(f"libtpu cannot describe {self.name} ({self.chip.name}:{shape}): {error}") from None
        return list(described.devices)


def prepare_environment() -> None:
    """Lets libtpu compile on a machine without a TPU. Call before importing jax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no metadata server to ask
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # without it a second process that compiles dies
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"  # without these two it warns
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as v5e-256 or v5p-256, or of a shape such as v5p:4x4x8.

    Raises:
      ValueError: no such chip, or a number of chips that is no slice of it.
    """
    match = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)*))", name)
    if not match or match[1] not in CHIPS:
        known = ", ".join(f"{chip}-N" for chip in CHIPS)
        raise ValueError(f"topology {name!r} is unknown; known: {known}, e.g. v5e-256, or a shape as in v5p:4x4x8")
    chip = CHIPS[match[1]]
    if match[3]:
        grid = tuple(map(int, match[3].split("x")))
        if len(grid) != chip.torus_axes:
            raise ValueError(f"topology {name!r}: slices of {chip.name} have {chip.torus_axes} dimensions")
    else:
        chips, remainder = divmod(int(match[2]), chip.named_cores)
        if remainder or chips < 1 or chips & (chips - 1):
            counted = f"{chip.name} count {'TensorCores, two to a chip' if chip.named_cores == 2 else 'chips'}"
            raise ValueError(f"topology {name!r}: names of {counted}; wanted a power of two, as {chip.name}-256")
        # the most cubic shape; the last axes are the longer ones
        low, longer = divmod(chips.bit_length() - 1, chip.torus_axes)
        grid = tuple(2 ** (low + (axis >= chip.torus_axes - longer)) for axis in range(chip.torus_axes))
    if prod(grid) > chip.max_chips:
        raise ValueError(f"topology {name!r}: a slice of {chip.name} has {chip.max_chips} chips at most; use --slices")
    return Topology(name, chip, grid, slices)


CHIP_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)  # slices of v5e and v6e; the others come in any number of whole VMs


@dataclass(frozen=True)
class SliceType:
    """A slice as it is rented. `accelerator` is Google Cloud's name; `workers` is the number of VMs."""

    name: str
    accelerator: str
    chips: int
    workers: int
    runtime: str


def slice_type(name: str) -> SliceType:
    """The slice of a name: v4-128, v5e-256, v5p-256, v6e-256, tpu7x-256, or Google Cloud's v5litepod-256.

    Raises:
      ValueError: no such generation or size.
    """
    match = re.fullmatch(r"([a-z0-9]+)-([1-9]\d*)", name)
    chip = match and next((chip for chip in TPUS if match[1] in (chip.name, chip.accelerator)), None)
    if not chip:
        raise ValueError(f"no TPU type {name!r}; wanted GENERATION-NUMBER such as v5e-256, of {', '.join(CHIPS)}")
    number = int(match[2])
    if chip.named_cores == 2 and number % 8:
        raise ValueError(f"{name}: the number of {chip.name} counts TensorCores, 8 a VM; wanted a multiple of 8")
    if chip.named_cores == 1 and number not in CHIP_SIZES:
        raise ValueError(f"{name}: {chip.name} slices have {', '.join(map(str, CHIP_SIZES))} chips")
    chips = number // chip.named_cores
    workers = 1 if chip.named_cores == 1 and chips <= 8 else chips // 4  # small slices of v5e and v6e are one VM
    return SliceType(f"{chip.name}-{number}", f"{chip.accelerator}-{number}", chips, workers, chip.runtime)
