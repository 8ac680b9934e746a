"""AWQ checkpoints: packed words become the floats that were packed."""

import numpy as np
import pytest

from qwenjax.interop import Tensor, awq

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # as the library AutoAWQ packs eight outputs into one word


def pack(integers: np.ndarray) -> np.ndarray:
    """[r, 8 c] of 0 … 15 -> int32 [r, c], word by word."""
    words = np.zeros((len(integers), integers.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for place, output in enumerate(ORDER):
            words[:, column] |= integers[:, 8 * column + output].astype(np.uint32) << (4 * place)
    return words.view(np.int32)


def stored(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


@pytest.fixture
def packed():
    rng = np.random.default_rng(0)
    integers, zeros = rng.integers(0, 16, (64, 16)), rng.integers(0, 16, (2, 16))
    scales = rng.standard_normal((2, 16)).astype(np.float16)
    weight = np.empty((16, 64), np.float32)
    for i in range(64):  # by hand, as the format says
        for o in range(16):
            weight[o, i] = np.float32(scales[i // 32, o]) * (int(integers[i, o]) - int(zeros[i // 32, o]))
    parts = {"x.qweight": pack(integers), "x.qzeros": pack(zeros), "x.scales": scales, "norm.weight": np.ones(3)}
    return {name: stored(array) for name, array in parts.items()}, weight


def test_words_are_unpacked(packed):
    tensors, weight = packed
    out = awq.dequantised(tensors, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"}, "config")
    assert set(out) == {"x.weight", "norm.weight"}
    np.testing.assert_array_equal(out["x.weight"].read(), weight)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"bits": 8}, "bits=8 of AWQ is not read"),
        ({"version": "gemv"}, "version='gemv' of AWQ is not read"),
        ({"group_size": 16}, r"x.qzeros is \[2, 2\]; groups of 16 want \[4, 2\]"),
    ],
)
def test_other_packings_are_refused(packed, config, words):
    with pytest.raises(ValueError, match=words):
        awq.dequantised(packed[0], {"bits": 4, "group_size": 32, "version": "gemm", **config}, "config")


def test_a_missing_part_is_named(packed):
    tensors = {name: x for name, x in packed[0].items() if name != "x.scales"}
    with pytest.raises(ValueError, match=r"x is packed, but x.scales is missing"):
        awq.dequantised(tensors, {"group_size": 32}, "config")
