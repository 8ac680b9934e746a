"""Rows, packing, batches on any number of hosts, and held-out rows."""

import itertools
import threading
import time
from functools import partial

import numpy as np
import pytest
from data_doubles import corpus

from qwenjax.data.batches import text
from qwenjax.data.batches.text import Batches, TextMixture, pack, validation_batches
from qwenjax.data.shards.format import Shards
from qwenjax.data.shards.write import tokenize

pytest_plugins = ["data_fixtures"]


@pytest.fixture
def mixture(shards, tmp_path, tokenizer):
    """Two sources, 3:1, rows of 64; the second is small, so that epochs end soon."""
    corpus(tmp_path / "small.jsonl", 20, seed=5)
    small = tokenize([tmp_path / "small.jsonl"], tmp_path / "small", tokenizer, validation=0, page=128, progress=False)
    return TextMixture([shards, small], [3, 1], 64, seed=7)


def plain(mixture):
    """What reads its rows, documents not isolated."""
    return partial(mixture.batch, eot=256, document_mask=False)


def take(mixture, batch, rows, count, next_row=0):
    with Batches(plain(mixture), batch, rows, next_row) as batches:
        return [next(batches) for _ in range(count)]


def test_row_is_the_tokens_at_its_place(mixture):
    whole = [s.read("train", 0, s.tokens("train")) for s in mixture.shards]
    for row in range(300):
        place = mixture.locate(row)
        assert np.array_equal(mixture.row(row), whole[place.source][place.offset : place.offset + 65])


def test_rows_of_an_epoch_are_the_text(mixture):
    """The windows of one epoch, in order, are a stretch of the stream without gap or overlap."""
    parts = {}
    for row in range(1200):
        place = mixture.locate(row)
        if place.source == 1 and place.epoch == 1:
            assert place.window not in parts
            parts[place.window] = mixture.row(row)[:-1]
    joined = np.concatenate([parts[w] for w in sorted(parts)])
    phase, n = mixture.order.phase(1, 1), mixture.order.windows[1] * 64
    assert np.array_equal(joined, mixture.shards[1].read("train", phase, n))


def test_documents_of_a_row_are_those_it_holds(mixture):
    for row in range(100):
        place, tokens = mixture.locate(row), mixture.row(row)
        for span in mixture.documents(row):
            a, b = max(span.start, place.offset), min(span.stop, place.offset + 65)
            whole = mixture.shards[place.source].read("train", span.start, span.stop - span.start)
            assert np.array_equal(tokens[a - place.offset : b - place.offset], whole[a - span.start : b - span.start])
        assert (tokens == 256).sum() in (len(mixture.documents(row)) - 1, len(mixture.documents(row)))


def test_batches_do_not_depend_on_batch_size_or_hosts(mixture):
    """Rows 0 to 1,199 in batches of 8, 24 and 120, over 1, 2 and 4 hosts, several epochs of the second source."""
    rows = np.stack([mixture.row(r)[:-1] for r in range(1200)])
    assert mixture.locate(1199).epoch != 0 or mixture.epochs(1200)[1] > 3
    for batch, hosts in [(8, 1), (24, 2), (120, 4)]:
        for host in range(hosts):
            mine = range(host * batch // hosts, (host + 1) * batch // hosts)
            got = take(mixture, batch, mine, 1200 // batch)
            assert [next_row for next_row, _ in got] == list(range(batch, 1201, batch))
            for step, (_, local) in enumerate(got):
                assert np.array_equal(local["inputs"], rows[step * batch + np.array(mine)])


def test_seek_equals_reading_on(mixture):
    straight = take(mixture, 8, range(8), 12)
    resumed = take(mixture, 8, range(8), 7, next_row=straight[4][0])
    for (a, x), (b, y) in zip(straight[5:], resumed):
        assert a == b
        assert all(np.array_equal(x[name], y[name]) for name in x)


def test_seek_takes_constant_time_at_any_row_and_need_not_be_a_multiple(mixture):
    began = time.monotonic()
    far = 3 * 2**40 + 5
    ((next_row, batch),) = take(mixture, 8, [1, 3], 1, next_row=far)
    assert time.monotonic() - began < 10  # with the import of grain; to walk there would take years
    assert next_row == far + 8
    assert np.array_equal(batch["inputs"], np.stack([mixture.row(far + r)[:-1] for r in (1, 3)]))


def test_pack_by_hand():
    tokens = np.array([[5, 9, 6, 7, 9, 9, 8], [9, 1, 2, 3, 4, 5, 9]], np.int32)  # 9 is end-of-text
    inputs = [[5, 9, 6, 7, 9, 9], [9, 1, 2, 3, 4, 5]]
    targets = [[9, 6, 7, 9, 9, 8], [1, 2, 3, 4, 5, 9]]
    plain, isolated = pack(tokens, 9, False), pack(tokens, 9, True)
    for packed in (plain, isolated):
        assert packed["inputs"].tolist() == inputs
        assert packed["targets"].tolist() == targets
        assert {name: (a.shape, a.dtype) for name, a in packed.items()} == text.batch_shapes(2, 6)
        assert all(a.flags.c_contiguous for a in packed.values())
    assert text.batch_shapes(2, 6).keys() - text.batch_shapes(2, 6, document_mask=False) == {"segments"}
    assert plain["weights"].tolist() == [[1] * 6] * 2
    assert plain["positions"].tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert plain["segments"].tolist() == [[0] * 6] * 2
    # documents of the first row, as inputs: 5 | 9 6 7 | 9 | 9; of the second: 9 1 2 3 4 5
    assert isolated["weights"].tolist() == [[1] * 6] * 2
    assert isolated["positions"].tolist() == [[0, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5]]
    assert isolated["segments"].tolist() == [[0, 1, 1, 1, 2, 3], [1] * 6]


def test_read_error_reaches_the_consumer_and_closes(mixture):
    entry = mixture.shards[1].index["splits"]["train"]["files"][0]["files"]["tokens"]
    file = mixture.shards[1].directory / entry["name"]
    data = bytearray(file.read_bytes())
    at = bytes(data).find(bytes([0x28, 0xB5, 0x2F, 0xFD]))  # first zstd frame: the first page's data
    data[at + 20] ^= 1
    file.write_bytes(data)
    damaged = TextMixture([mixture.shards[0], Shards(mixture.shards[1].directory)], [3, 1], 64, 7)
    batches = Batches(plain(damaged), 8, range(8))
    with pytest.raises(ValueError, match=rf"{file.name}: page 0 cannot be read"):
        list(itertools.islice(batches, 200))
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_close_stops_the_threads(mixture):
    batches = Batches(plain(mixture), 8, range(8))
    next(batches)
    readers = lambda: [t for t in threading.enumerate() if "grain-prefetch" in t.name]  # noqa: E731
    assert 1 <= len(readers()) <= text.THREADS
    batches.close()
    batches.close()
    for _ in range(100):
        if not readers():
            break
        time.sleep(0.02)
    assert not readers()


def test_wrong_rows_are_refused(mixture):
    for rows in ([], [8], [-1]):
        with pytest.raises(ValueError, match=r"of a batch of 8; wanted some of 0 to 7"):
            Batches(plain(mixture), 8, rows)
    with pytest.raises(ValueError, match="next_row=-1"):
        Batches(plain(mixture), 8, [0], -1)


@pytest.mark.parametrize("length", [7, 64, 5000])
def test_validation_predicts_every_token_once(shards, length):
    held_out = validation_batches([shards], length, 10**9, batch_size=4)
    tokens = shards.read("validation", 0, shards.tokens("validation"))
    assert np.array_equal(held_out.tokens[0], tokens)
    targets = np.concatenate([b["targets"][b["weights"] > 0] for b in held_out.batches])
    inputs = np.concatenate([b["inputs"][b["weights"] > 0] for b in held_out.batches])
    assert np.array_equal(targets, tokens)
    assert np.array_equal(inputs, np.concatenate([[256], tokens[:-1]]))
    assert all(b["inputs"].shape == (4, length) for b in held_out.batches)


def test_validation_limit_is_shared_in_proportion(shards, tmp_path, tokenizer):
    corpus(tmp_path / "other.jsonl", 200, seed=8)
    other = tokenize([tmp_path / "other.jsonl"], tmp_path / "other", tokenizer, validation=0.5, progress=False)
    sizes = [s.tokens("validation") for s in (shards, other)]
    held_out = validation_batches([shards, other], 64, 2000, batch_size=8)
    assert [len(t) for t in held_out.tokens] == [int(n * 2000 / sum(sizes)) for n in sizes]
    assert sum(b["weights"].sum() for b in held_out.batches) == sum(len(t) for t in held_out.tokens)
    for source, tokens in zip((shards, other), held_out.tokens):
        assert np.array_equal(tokens, source.read("validation", 0, len(tokens)))


def test_isolated_validation_predicts_every_token_too(shards):
    held_out = validation_batches([shards], 64, 10**9, batch_size=4, document_mask=True)
    targets = np.concatenate([b["targets"][b["weights"] > 0] for b in held_out.batches])
    assert np.array_equal(targets, held_out.tokens[0])


def test_nothing_held_out_is_no_batches(tmp_path, tokenizer):
    corpus(tmp_path / "a.jsonl", 5)
    made = tokenize([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer, validation=0, progress=False)
    held_out = validation_batches([made], 64, 1000, batch_size=4)
    assert held_out.batches == []
    assert [t.tolist() for t in held_out.tokens] == [[]]
