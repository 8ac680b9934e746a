"""Names of TPU slices."""

import pytest

from qwenjax.xla.hardware import CHIPS, parse


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
    topology = parse(name)
    assert (topology.chips, topology.grid) == (chips, grid)
    assert name.startswith(topology.chip.name)
    assert parse(name, slices=2).chips == 2 * chips


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
        parse(name)


def test_a_ring_uses_the_axes_that_are_there():
    assert [parse(name).axes for name in ("v5e-256", "v5e-1", "v5p-256", "v5p:1x1x4")] == [2, 1, 3, 1]
    assert all(chip.flops > 1e14 and chip.memory > 1 << 33 for chip in CHIPS.values())


def test_a_tpu7x_chip_is_two_devices():
    assert [parse(name).device_count for name in ("tpu7x-256", "v5p-256", "v5e-256")] == [256, 128, 256]
    assert parse("tpu7x-8", slices=2).device_count == 16
