"""TPU slices by the names people rent them under, without a TPU: devices to compile for, and what a chip can do.

v4, v5p and tpu7x names count TensorCores, two to a chip (v5p-256 is 128 chips); v5e and v6e names count chips. Peaks,
memory and the network between slices are from the makers' data sheets; link speeds are per torus axis, both ways
together, and are not confirmed by measurement: they price the part of a step that collectives take in the open.
"""

import os
import re
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Chip:
    """One kind of chip; numbers are of one device, which is a whole chip but for tpu7x."""

    name: str
    flops: float  # dense bf16 per second
    memory: int  # bytes of HBM
    clock: float  # cycles per second, in which the compiler estimates
    link: float  # bytes per second of a torus axis
    network: float  # bytes per second to other slices
    cores: int  # that its slices' names count for each chip
    torus: int  # dimensions
    largest: int  # chips of a slice
    config: str = "default"  # how libtpu groups cores: megacore makes two of them one device
    devices: int = 1  # to a chip


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 << 30, 1.05e9, 9e10, 3.1e9, 2, 3, 4096, "megacore"),
        Chip("v5e", 197e12, 16 << 30, 1.5e9, 9e10, 3.1e9, 1, 2, 256),
        Chip("v5p", 459e12, 95 << 30, 1.75e9, 1.8e11, 6.2e9, 2, 3, 8960, "megacore"),
        Chip("v6e", 918e12, 32 << 30, 1.75e9, 1.8e11, 12.5e9, 1, 2, 256),
        # the clock is not published; it is what its peak means for four matrix units of 256 x 256 per core
        Chip("tpu7x", 1153.5e12, 96 << 30, 2.2e9, 1.8e11, 6.2e9, 2, 3, 9216, devices=2),
    )
}


@dataclass(frozen=True)
class Topology:
    """Some slices of one kind."""

    name: str
    chip: Chip
    grid: tuple[int, ...]  # chips of a slice along each axis of the torus
    slices: int = 1

    @property
    def chips(self) -> int:
        """In all slices."""
        return prod(self.grid) * self.slices

    @property
    def device_count(self) -> int:
        """In all slices."""
        return self.chips * self.chip.devices

    @property
    def axes(self) -> int:
        """Torus axes with more than one chip: what a ring may use."""
        return max(1, sum(n > 1 for n in self.grid))

    def devices(self) -> list:
        """Devices to compile for.

        Raises:
          ValueError: libtpu, which brings the compiler, is not installed, or knows no such slice.
        """
        import importlib.util

        if importlib.util.find_spec("libtpu") is None:
            raise ValueError("plan needs the TPU compiler: pip install 'qwenjax[tpu-aot]' (x86, no TPU needed)")
        from jax.experimental import topologies

        shape = "x".join(map(str, self.grid))
        try:
            described = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{self.chip.name}:{shape}",
                chip_config_name=self.chip.config,
                num_slices=self.slices,
            )
        except Exception as error:  # libtpu's own errors, of many kinds
            raise ValueError(f"libtpu cannot describe {self.name} ({self.chip.name}:{shape}): {error}") from None
        return list(described.devices)


def prepare_environment() -> None:
    """What libtpu needs to compile without a TPU; before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not ask a metadata server that is not there
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # else a second process that compiles dies
    os.environ["TPU_WORKER_HOSTNAMES"], os.environ["TPU_ACCELERATOR_TYPE"] = (
        "localhost",
        "v5litepod-8",
    )  # or it complains
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as v5e-256 or v5p-256, or of a shape such as v5p:4x4x8.

    Raises:
      ValueError: no such chip, or a number of chips that is no slice of it.
    """
    found = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)*))", name)
    if not found or found[1] not in CHIPS:
        known = ", ".join(f"{chip}-N" for chip in CHIPS)
        raise ValueError(f"topology {name!r} is unknown; known: {known}, e.g. v5e-256, or a shape as in v5p:4x4x8")
    chip = CHIPS[found[1]]
    if found[3]:
        grid = tuple(map(int, found[3].split("x")))
        if len(grid) != chip.torus:
            raise ValueError(f"topology {name!r}: slices of {chip.name} have {chip.torus} dimensions")
    else:
        chips, rest = divmod(int(found[2]), chip.cores)
        if rest or chips < 1 or chips & (chips - 1):
            counted = "TensorCores, two to a chip" if chip.cores == 2 else "chips"
            raise ValueError(
                f"topology {name!r}: names of {chip.name} count {counted}; wanted a power of two, as {chip.name}-256"
            )
        grid = _grid(chips, chip.torus)
    if prod(grid) > chip.largest:
        raise ValueError(f"topology {name!r}: a slice of {chip.name} has {chip.largest} chips at most; use --slices")
    return Topology(name, chip, grid, slices)


def _grid(chips: int, dimensions: int) -> tuple[int, ...]:
    """The most cubic shape of a power of two: the last axes are the longer ones."""
    exponent = chips.bit_length() - 1
    low, more = divmod(exponent, dimensions)
    return tuple(2 ** (low + (i >= dimensions - more)) for i in range(dimensions))
