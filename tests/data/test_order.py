"""The order of rows: permutations, exact shares, epochs. No files."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.data.batches.order import BLOCK, Order, key, permute, shares, windows


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(n, k):
    assert np.array_equal(np.sort(permute(np.arange(n), n, k)), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 127, 128, 129, 65_521, BLOCK, 65_537])
def test_permutation_is_a_bijection_at_the_borders(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key("test", n))), np.arange(n))


@given(st.integers(1, 2**62), st.data())
def test_one_number_and_an_array_are_permuted_alike(n, data):
    i = data.draw(st.integers(0, n - 1))
    out = permute(i, n, key(5))
    assert 0 <= out < n
    assert permute(np.array([i, 0]), n, key(5))[0] == out


def test_every_permutation_of_four_is_as_likely():
    """24 permutations, 6,000 keys: 250 each, standard deviation 15.5; six of them are 93."""
    seen = Counter(tuple(permute(i, 4, key(k)) for i in range(4)) for k in range(6_000))
    assert len(seen) == 24
    assert max(abs(n - 250) for n in seen.values()) < 93


def test_permutation_has_no_trend():
    """For a random order of 100,003 numbers, correlations are about 1/sqrt(n) = 0.003."""
    order = permute(np.arange(100_003), 100_003, key(3))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_003))[0, 1]) < 0.02


def test_order_is_frozen():
    """A saved `next_row` means these numbers: if this fails, runs in progress would read other data."""
    assert key(0, "block", 7) == 10012036260065582634
    assert permute(np.arange(10), 10, key("frozen")).tolist() == [6, 8, 5, 9, 7, 3, 2, 4, 0, 1]
    places = [Order((10**12, 10**6), (0.9, 0.1), 2048, 17).locate(r) for r in (0, 1, 2**40)]
    assert [tuple(p) for p in places] == [
        (0, 0, 483799246, 990820857371),
        (1, 0, 381, 782065),
        (0, 2026, 165934566, 339833993178),
    ]


def test_shares_are_exact_by_largest_remainder():
    # 10 rows at 1:1:1 are 3.33 each: one row is left, remainders are equal, the first gets it
    assert shares((1, 1, 1), 10) == (4, 3, 3)
    # 0.55, 0.27, 0.18 of 10 are 5.5, 2.7, 1.8: floors 5 + 2 + 1, the two left go to 0.8 and 0.7
    assert shares((0.55, 0.27, 0.18), 10) == (5, 3, 2)
    assert shares((2.0,)) == (BLOCK,)
    assert sum(shares((0.3, 0.123, 7.7, 1e-3))) == BLOCK
    with pytest.raises(ValueError, match="source 1 has weight 1e-09"):
        shares((1, 1e-9))


def test_each_block_holds_exactly_the_shares():
    order = Order((10**6, 10**5, 10**4), (0.7, 0.2, 0.1), 16, 3)
    assert order.shares == (45_875, 13_107, 6_554)  # of 65,536: 45,875.2, 13,107.2 and 6,553.6
    for block in (0, 7):
        rows = range(block * BLOCK, (block + 1) * BLOCK)
        assert Counter(order.locate(r).source for r in rows) == dict(enumerate(order.shares))


def test_every_window_once_per_epoch():
    """Two sources of 37 and 11 windows: all rows of the first block, sorted into epochs."""
    length = 8
    tokens = (38 * length + 3, 12 * length + 1)
    order = Order(tokens, (3, 1), length, seed=1)
    assert order.windows == (37, 11)
    assert [windows(n, length) for n in tokens] == [37, 11]
    seen: dict = {}
    for r in range(BLOCK):
        place = order.locate(r)
        seen.setdefault((place.source, place.epoch), []).append(place)
    phases = set()
    for (source, epoch), places in seen.items():
        last = epoch == max(e for s, e in seen if s == source)
        drawn = [p.window for p in places]
        assert len(set(drawn)) == len(drawn)
        assert last or len(drawn) == order.windows[source]
        phase = {p.offset - p.window * length for p in places}
        assert phase == {order.phase(source, epoch)}
        assert all(p.offset in range(tokens[source] - length) for p in places)
        phases.add((source, *phase))
    assert phases == {(s, p) for s in (0, 1) for p in range(length)}  # every cut occurs


def test_locate_is_the_formula_of_the_design():
    """The same arithmetic over whole arrays, for the second block."""
    order, seed, b = Order((5000, 700), (0.6, 0.4), 10, 9), 9, 1
    k = permute(np.arange(BLOCK), BLOCK, key(seed, "block", b))
    s = np.searchsorted(np.cumsum(order.shares), k, side="right")
    c = np.array(order.shares)
    rank = b * c[s] + np.array([np.count_nonzero(s[:j] == s[j]) for j in range(BLOCK)])
    epoch, i = np.divmod(rank, np.array(order.windows)[s])
    for j in range(0, BLOCK, 97):
        place = order.locate(b * BLOCK + j)
        assert place[:2] == (s[j], epoch[j])
        assert place.window == permute(int(i[j]), order.windows[s[j]], key(seed, "windows", int(s[j]), int(epoch[j])))
        assert place.offset == order.phase(s[j], epoch[j]) + place.window * 10


def test_seeds_differ_and_repeat():
    make = lambda seed: [Order((10**6,), (1,), 64, seed).locate(r) for r in range(100)]  # noqa: E731
    assert make(1) == make(1)
    assert make(1) != make(2)


def test_rows_far_beyond_32_bits():
    order = Order((2**45, 10**5), (0.5, 0.5), 2048, 0)
    places = [order.locate(r) for r in range(2**41, 2**41 + 200)]
    assert all(0 <= p.offset <= order.tokens[p.source] - 2049 for p in places)
    assert any(p.offset > 2**40 for p in places)
    assert order.locate(np.int64(2**41)) == order.locate(2**41)


def test_source_too_small_for_a_window():
    assert Order((17,), (1,), 8, 0).locate(5).offset in range(8)  # 2L + 1 tokens: one window, L cuts
    with pytest.raises(ValueError, match=r"source 1 has 16 tokens, rows of length 8 need 17"):
        Order((17, 16), (1, 1), 8, 0)


def test_epochs_follow_each_other():
    """No window is read again before every other one of its source has been read."""
    order = Order((500, 4000), (1, 2), 10, 3)
    epochs = [[], []]
    for r in range(3000):
        place = order.locate(r)
        epochs[place.source].append(place.epoch)
    for source, seen in enumerate(epochs):
        assert seen == [n // order.windows[source] for n in range(len(seen))]
