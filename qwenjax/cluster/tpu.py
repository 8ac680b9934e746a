"""Names of TPU slices: how many chips and VMs each means, and what Google Cloud calls it.

The number behind the name counts chips for v5e and v6e, and TensorCores, two a chip, for v4, v5p and tpu7x.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """One TPU generation: its name in accelerator types, what its number counts, and the image its VMs boot."""

    accelerator: str
    cores_counted: bool
    runtime: str


# Runtime versions: cloud.google.com/tpu/docs/runtimes, table "PyTorch and JAX"; tpu7x is not in it yet, its image is
# the one of Google's own Ironwood benchmarks. `gcloud compute tpus tpu-vm versions list --zone=ZONE` has today's list.
GENERATIONS = {
    "v4": Generation("v4", True, "tpu-ubuntu2204-base"),
    "v5e": Generation("v5litepod", False, "v2-alpha-tpuv5-lite"),
    "v5p": Generation("v5p", True, "v2-alpha-tpuv5"),
    "v6e": Generation("v6e", False, "v2-alpha-tpuv6e"),
    "tpu7x": Generation("tpu7x", True, "v2-alpha-tpu7-ubuntu2404"),
}
ALIASES = {"v5litepod": "v5e"}
CHIP_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)  # of v5e and v6e; the others come in any number of whole VMs


@dataclass(frozen=True)
class Tpu:
    """A slice type. `accelerator` is Google Cloud's name, `workers` the VMs that each run the same command."""

    name: str
    accelerator: str
    chips: int
    workers: int
    runtime: str


def tpu(name: str) -> Tpu:
    """The slice type that a user's name means: v4-128, v5e-256, v5p-256, v6e-256, tpu7x-256.

    Raises:
      ValueError: no such generation or size.
    """
    match = re.fullmatch(r"([a-z0-9]+)-([1-9]\d*)", name)
    generation = match and ALIASES.get(match[1], match[1])
    if not match or generation not in GENERATIONS:
        raise ValueError(f"no TPU type {name!r}; wanted GENERATION-NUMBER such as v5e-256, of {', '.join(GENERATIONS)}")
    known, number = GENERATIONS[generation], int(match[2])
    if known.cores_counted and number % 8:
        raise ValueError(f"{name}: the number of {generation} counts TensorCores, 8 a VM; wanted a multiple of 8")
    if not known.cores_counted and number not in CHIP_SIZES:
        raise ValueError(f"{name}: {generation} slices have {', '.join(map(str, CHIP_SIZES))} chips")
    chips = number // 2 if known.cores_counted else number
    alone = not known.cores_counted and chips <= 8  # one VM with all its chips; larger slices have 4 a VM
    return Tpu(
        f"{generation}-{number}", f"{known.accelerator}-{number}", chips, 1 if alone else chips // 4, known.runtime
    )
