"""Names of TPU slices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.cluster.tpu import GENERATIONS, tpu

NAMES = [
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


@pytest.mark.parametrize(("name", "accelerator", "chips", "workers", "runtime"), NAMES)
def test_names_mean_chips_and_vms(name, accelerator, chips, workers, runtime):
    one = tpu(name)
    assert (one.name, one.accelerator, one.chips, one.workers, one.runtime) == (
        name, accelerator, chips, workers, runtime,
    )  # fmt: skip
    assert tpu(one.accelerator) == one  # Google's own name is understood, too


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
def test_what_does_not_exist_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        tpu(name)


@given(st.sampled_from(sorted(GENERATIONS)), st.integers(-8, 70_000))
def test_every_slice_is_whole_vms_of_at_most_eight_chips(generation, number):
    try:
        one = tpu(f"{generation}-{number}")
    except ValueError:
        return
    assert one.chips % one.workers == 0
    assert one.chips // one.workers <= 8


@given(st.text())
def test_any_text_is_a_type_or_a_clear_error(text):
    try:
        chips = tpu(text).chips
    except ValueError as error:
        chips = 1 if "wanted" in str(error) or "slices have" in str(error) else 0
    assert chips > 0
