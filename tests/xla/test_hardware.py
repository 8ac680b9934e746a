"""Peaks of chips, and names of TPU slices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.xla.hardware import CHIPS, parse_topology, peak_flops, slice_type


@pytest.mark.parametrize(
    ("name", "chips", "grid"),
    [
        ("v5e-256", 256, (16, 16)),
        ("v5e-8", 8, (2, 4)),
        ("v5e-1", 1, (1, 1)),
        ("v6e-256", 256, (16, 16)),
        ("v5p-256", 128, (4, 4, 8)),  # the name counts two cores per chip
        ("v5p-128", 64, (4, 4, 4)),
        ("v4-128", 64, (4, 4, 4)),
        ("v4-16", 8, (2, 2, 2)),
        ("v5p:4x4x8", 128, (4, 4, 8)),
        ("tpu7x-256", 128, (4, 4, 8)),
    ],
)
def test_names_mean_chips(name, chips, grid):
    topology = parse_topology(name)
    assert (topology.chips, topology.grid) == (chips, grid)
    assert name.startswith(topology.chip.name)
    assert parse_topology(name, slices=2).chips == 2 * chips


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "known: v4-N, v5e-N, v5p-N, v6e-N, tpu7x-N"),
        ("v9-8", "is unknown"),
        ("v5e-100", "count chips; wanted a power of two"),
        ("v5p-255", "count TensorCores, two to a chip"),
        ("v5e-512", "has 256 chips at most; use --slices"),
        ("v5p:4x4", "have 3 dimensions"),
        ("v5e-0", "wanted a power of two"),
    ],
)
def test_what_is_no_slice_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        parse_topology(name)


def test_a_ring_uses_the_axes_that_are_there():
    assert [parse_topology(name).axes for name in ("v5e-256", "v5e-1", "v5p-256", "v5p:1x1x4")] == [2, 1, 3, 1]
    assert all(chip.flops > 1e14 and chip.memory > 1 << 33 for chip in CHIPS.values())


def test_a_tpu7x_chip_is_two_devices():
    assert [parse_topology(name).device_count for name in ("tpu7x-256", "v5p-256", "v5e-256")] == [256, 128, 256]
    assert parse_topology("tpu7x-8", slices=2).device_count == 16


def test_every_tpu_has_a_peak_by_the_name_that_jax_gives_it():
    assert [peak_flops(chip.device_kind) for chip in CHIPS.values()] == [chip.flops for chip in CHIPS.values()]
    assert (peak_flops("TPU v5p"), peak_flops("NVIDIA A100-SXM4-40GB")) == (459e12, 312e12)
    assert peak_flops("TPU v99") is None


RENTED = [
    # name, Google's name, chips, VMs: 4 chips a VM, but v5e and v6e of up to 8 chips are one VM; cores are 2 a chip
    ("v4-8", "v4-8", 4, 1, "tpu-ubuntu2204-base"),
    ("v4-128", "v4-128", 64, 16, "tpu-ubuntu2204-base"),
    ("v5e-1", "v5litepod-1", 1, 1, "v2-alpha-tpuv5-lite"),
    ("v5e-8", "v5litepod-8", 8, 1, "v2-alpha-tpuv5-lite"),
    ("v5e-16", "v5litepod-16", 16, 4, "v2-alpha-tpuv5-lite"),
    ("v5e-256", "v5litepod-256", 256, 64, "v2-alpha-tpuv5-lite"),
    ("v5p-256", "v5p-256", 128, 32, "v2-alpha-tpuv5"),
    ("v6e-256", "v6e-256", 256, 64, "v2-alpha-tpuv6e"),
    ("tpu7x-256", "tpu7x-256", 128, 32, "v2-alpha-tpu7-ubuntu2404"),
]


@pytest.mark.parametrize(("name", "accelerator", "chips", "workers", "runtime"), RENTED)
def test_names_mean_chips_and_vms(name, accelerator, chips, workers, runtime):
    one = slice_type(name)
    assert (one.name, one.accelerator, one.chips, one.workers, one.runtime) == (
        name, accelerator, chips, workers, runtime,
    )  # fmt: skip
    assert slice_type(one.accelerator) == one  # Google's own name is understood, too


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "wanted GENERATION-NUMBER"),
        ("v9-8", "wanted GENERATION-NUMBER"),
        ("v5e-256 ", "wanted GENERATION-NUMBER"),
        ("v5e-100", "v5e slices have 1, 4, 8, 16, 32, 64, 128, 256 chips"),
        ("v5p-12", "multiple of 8"),
    ],
)
def test_a_slice_that_does_not_exist_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        slice_type(name)


@given(st.sampled_from(sorted(CHIPS)), st.integers(-8, 70_000))
def test_every_slice_is_whole_vms_of_at_most_eight_chips(generation, number):
    try:
        one = slice_type(f"{generation}-{number}")
    except ValueError:
        return
    assert one.chips % one.workers == 0
    assert one.chips // one.workers <= 8


@given(st.text())
def test_any_text_is_a_type_or_a_clear_error(text):
    try:
        chips = slice_type(text).chips
    except ValueError as error:
        chips = 1 if "wanted" in str(error) or "slices have" in str(error) else 0
    assert chips > 0
