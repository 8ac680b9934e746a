import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.profile.timeline import length, merge, overlap, shares, split_by_innermost

SPANS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=8
)


def array(spans) -> np.ndarray:
    return np.array(spans, float).reshape(-1, 2)


def covered(spans) -> list[int]:
    """How many spans are open in each unit of time."""
    return [sum(start <= t < end for start, end in spans) for t in range(40)]


def test_a_parent_keeps_what_its_children_leave():
    spans = [(0, 10), (2, 5), (5, 6), (12, 13)]
    assert split_by_innermost(spans) == [(0, 0, 2), (1, 2, 5), (2, 5, 6), (0, 6, 10), (3, 12, 13)]


def test_a_child_of_the_whole_length_of_its_parent_takes_all_of_it():
    assert split_by_innermost([(0, 4), (0, 4)]) == [(1, 0, 4)]


@given(SPANS)
def test_pieces_are_the_union_and_do_not_overlap(spans):
    pieces = [(start, end) for _, start, end in split_by_innermost(spans)]
    assert covered(pieces) == [min(n, 1) for n in covered(spans)]


@given(SPANS)
def test_merge_and_length_are_the_union(spans):
    merged = merge(array(spans))
    assert covered(merged.tolist()) == [min(n, 1) for n in covered(spans)]
    assert length(array(spans)) == sum(n > 0 for n in covered(spans))
    assert (merged[1:, 0] > merged[:-1, 1]).all()


@given(SPANS, SPANS)
def test_overlap_counts_moments_in_both(a, b):
    both = sum(x > 0 and y > 0 for x, y in zip(covered(a), covered(b)))
    assert overlap(array(a), array(b)) == both


@given(SPANS)
def test_every_moment_is_shared_equally(spans):
    open_then = covered(spans)
    expected = [sum(1 / open_then[t] for t in range(start, end)) for start, end in spans]
    assert shares(array(spans)) == pytest.approx(expected)
    assert shares(array(spans)).sum() == pytest.approx(length(array(spans)))
