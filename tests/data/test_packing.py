"""Bins: everything once, nothing over, and exactly those of the textbook."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.data.batches.packing import best_fit, one_per_bin


def textbook(lengths, capacity):
    """Remaining spaces after best-fit decreasing, an item at a time."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fits = [b for b, space in enumerate(spaces) if space >= length]
        if not fits:
            spaces.append(capacity)
            fits = [len(spaces) - 1]
        spaces[min(fits, key=lambda b: spaces[b])] -= length
    return sorted(spaces)


@st.composite
def problems(draw):
    capacity = draw(st.integers(1, 60))
    return np.array(draw(st.lists(st.integers(1, capacity), max_size=80)), np.int64), capacity


@given(problems())
def test_plan_is_best_fit_decreasing(problem):
    lengths, capacity = problem
    bins = best_fit(lengths, capacity)
    assert sorted(bins.items.tolist()) == list(range(len(lengths)))
    assert all(len(bins[b]) for b in range(len(bins)))
    assert sorted(capacity - int(lengths[bins[b]].sum()) for b in range(len(bins))) == textbook(lengths, capacity)


def test_a_plan_written_out():
    """6 alone leaves 4: the 4 goes there. 5 and 5 fill a bin; 3, 3, 3 the last, with 1 to spare."""
    bins = best_fit([3, 5, 6, 3, 4, 5, 3], 10)
    assert [bins[b].tolist() for b in range(len(bins))] == [[2, 4], [1, 5], [0, 3, 6]]
    assert bins.utilisation == 29 / 30


def test_an_item_prefers_the_fullest_bin_with_room():
    """7 and 6 leave 3 and 4; the 3 fits both."""
    bins = best_fit([7, 6, 3], 10)
    assert [bins[b].tolist() for b in range(len(bins))] == [[0, 2], [1]]


@pytest.mark.parametrize("draw", ["uniform", "lognormal", "short"])
def test_random_lengths_leave_little_empty(draw):
    rng = np.random.default_rng(0)
    lengths = {
        "uniform": rng.integers(1, 2049, 20_000),
        "lognormal": np.clip(rng.lognormal(5.5, 1, 20_000).astype(int), 1, 2048),
        "short": rng.integers(1, 400, 20_000),
    }[draw]
    assert best_fit(lengths, 2048).utilisation > {"uniform": 0.98, "lognormal": 0.995, "short": 0.995}[draw]


@given(st.integers(0, 2**32 - 1))
def test_a_hundred_random_lengths_fill_four_fifths(seed):
    lengths = np.random.default_rng(seed).integers(1, 129, 100)
    assert best_fit(lengths, 128).utilisation >= 0.8


def test_alone_is_one_each():
    bins = one_per_bin([3, 1, 4], 4)
    assert [bins[b].tolist() for b in range(len(bins))] == [[0], [1], [2]]
    assert bins.utilisation == 8 / 12


def test_nothing_needs_no_bin():
    assert len(best_fit([], 8)) == len(one_per_bin([], 8)) == 0


@pytest.mark.parametrize("lengths", [[4, 9], [4, 0], [4, -1]])
@pytest.mark.parametrize("function", [best_fit, one_per_bin])
def test_what_fits_no_bin_is_refused(function, lengths):
    with pytest.raises(ValueError, match=f"item 1 has length {lengths[1]}; wanted 1 to 8"):
        function(lengths, 8)


def test_a_bin_that_is_not_there_is_an_error():
    with pytest.raises(IndexError, match="bin 1 of 1"):
        best_fit([1], 8)[1]
