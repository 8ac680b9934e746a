"""Rows of dialogues: packing, order, batches on any number of hosts, held-out rows."""

import json
from collections import Counter

import numpy as np
import pytest
from chat_doubles import says, user, write
from dialogue_doubles import chats, expected, made

from qwenjax.chat_format.chatml import encode_with_mask
from qwenjax.chat_format.react import react_messages
from qwenjax.data.batches.conversations import ConversationMixture, pack, validation_batches
from qwenjax.data.batches.text import Batches
from qwenjax.data.conversations.convert import convert
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.conversations.schema import ConversationRow, validate
from qwenjax.data.conversations.store import ChatDataset, encode_file


@pytest.fixture
def two(tmp_path):
    """Two files prepared, of 150 and 20 dialogues, and their rows."""
    rows = [chats(tmp_path / f"{name}.jsonl", n, seed=n) for name, n in (("big", 150), ("small", 20))]
    return [made(tmp_path / f"{name}.jsonl", tmp_path / "data") for name in ("big", "small")], rows


def test_a_batch_written_out():
    """Dialogues of 3 and 2 tokens take 2 places and 1; the first token is no target, the last no input."""
    one = np.array([1, 2, 3], np.int32), np.array([1, 0, 1], np.float32)
    two = np.array([4, 5], np.int32), np.array([1, 1], np.float32)
    batch = pack([[one, two], [two]], 4, 9)
    assert {name: array.tolist() for name, array in batch.items()} == {
        "inputs": [[1, 2, 4, 9], [4, 9, 9, 9]],
        "targets": [[2, 3, 5, 9], [5, 9, 9, 9]],
        "weights": [[0, 1, 1, 0], [1, 0, 0, 0]],
        "positions": [[0, 1, 0, -1], [0, -1, -1, -1]],
        "segments": [[1, 1, 2, 0], [1, 0, 0, 0]],
    }
    assert {name: array.dtype for name, array in batch.items()} == {
        name: np.float32 if name == "weights" else np.int32 for name in batch
    }


def taken_apart(batch):
    """(ids, mask of all but the first) of every dialogue in a batch; checks padding and positions on the way."""
    out = []
    for inputs, targets, weights, positions, segments in zip(*(batch[n] for n in (
        "inputs", "targets", "weights", "positions", "segments",
    ))):  # fmt: skip
        padding = segments == 0
        assert not weights[padding].any()
        assert (positions[padding] == -1).all()
        assert (np.diff(np.flatnonzero(padding)) == 1).all()
        for number in range(1, segments.max() + 1):
            here = np.flatnonzero(segments == number)
            assert positions[here].tolist() == list(range(len(here)))
            assert np.array_equal(inputs[here[1:]], targets[here[:-1]])
            out.append(([*inputs[here].tolist(), int(targets[here[-1]])], weights[here].tolist()))
    return out


@pytest.mark.parametrize("packed", [True, False])
def test_every_dialogue_is_read_once_per_epoch_as_it_was_encoded(two, packed):
    files, rows = two
    mixture = ConversationMixture(files, [1, 1], seed=3, packed=packed, validation=0.1)
    seen, epochs = Counter(), Counter()
    for row in range(400):
        place, (s, numbers) = mixture.locate(row), mixture.sequences(row)
        assert packed or len(numbers) == 1
        found = taken_apart(mixture.batch([row]))
        for i, (ids, weights) in zip(numbers, found, strict=True):
            seen[s, place.epoch, int(i)] += 1
            all_ids, mask = expected(rows[s][i])
            assert ids == all_ids
            assert weights == mask[1:]
        epochs[s, place.epoch] += 1
    for s, file in enumerate(files):
        trained = set(np.flatnonzero(~file.held_out(0.1)).tolist())
        whole = [e for (t, e), count in epochs.items() if t == s and count == mixture.rows_per_epoch[s]]
        assert whole
        for epoch in whole:
            assert {i: n for (t, e, i), n in seen.items() if (t, e) == (s, epoch)} == dict.fromkeys(trained, 1)


def test_packed_rows_are_fewer_and_full(two):
    files, _ = two
    packed, single = (ConversationMixture(files, [1, 1], 0, packed=p) for p in (True, False))
    tokens = [f.table["tokens"][~f.held_out(0.03)] - 1 for f in files]
    assert single.rows_per_epoch == tuple(map(len, tokens))
    for mixture in (packed, single):
        for used, inputs, bins in zip(mixture.utilisation, tokens, mixture.rows_per_epoch):
            assert used == pytest.approx(inputs.sum() / (bins * 600))
    assert packed.utilisation[0] > 0.9 > 0.6 > single.utilisation[0]
    assert "filled" in packed.lines()[0]


def test_rows_do_not_depend_on_batch_size_or_hosts(two):
    mixture = ConversationMixture(two[0], [3, 1], seed=7)
    whole = mixture.batch(range(120))
    for batch, hosts in [(8, 1), (24, 2), (120, 4)]:
        for host in range(hosts):
            mine = np.arange(host * batch // hosts, (host + 1) * batch // hosts)
            with Batches(mixture.batch, batch, mine) as batches:
                for step in range(120 // batch):
                    after, local = next(batches)
                    assert after == (step + 1) * batch
                    assert all(np.array_equal(local[name], whole[name][step * batch + mine]) for name in whole)


def test_resuming_anywhere_equals_reading_on(two):
    files, _ = two
    with Batches(ConversationMixture(files, [3, 1], seed=7).batch, 8, range(8)) as batches:
        straight = [next(batches) for _ in range(12)]
    again = [ChatDataset(file.directory) for file in files]  # as a new process would
    with Batches(ConversationMixture(again, [3, 1], seed=7).batch, 8, range(8), next_row=straight[4][0]) as batches:
        for after, expected_batch in straight[5:]:
            found_after, found = next(batches)
            assert found_after == after
            assert all(np.array_equal(found[name], expected_batch[name]) for name in found)


def test_seeds_and_epochs_differ(two):
    a, b = (ConversationMixture(two[0][:1], [1], seed) for seed in (0, 1))
    n = a.rows_per_epoch[0]
    orders = [[tuple(m.sequences(start + r)[1]) for r in range(n)] for m, start in ((a, 0), (a, n), (b, 0))]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) != sorted(orders[2])


def test_files_have_their_exact_shares(two):
    mixture = ConversationMixture(two[0], [3, 1], seed=0)
    counts = Counter(mixture.locate(row).source for row in range(65_536))
    assert counts == {0: 49_152, 1: 16_384}
    assert mixture.epochs(65_536) == (49_152 / mixture.rows_per_epoch[0], 16_384 / mixture.rows_per_epoch[1])


def test_a_single_dialogue_is_every_row(tmp_path):
    write(tmp_path / "x.jsonl", {"messages": [user("a"), says("b")]})
    mixture = ConversationMixture([made(tmp_path / "x.jsonl", tmp_path)], [1], 0, validation=0)
    assert mixture.rows_per_epoch == (1,)
    assert [mixture.locate(row).epoch for row in range(3)] == [0, 1, 2]
    assert mixture.describe(2) == "row 2: epoch 2, bin 0, x.jsonl:1"


def test_mixtures_that_cannot_be_are_refused(two, tmp_path):
    files, _ = two
    shorter = made(tmp_path / "big.jsonl", tmp_path / "data", length=500)
    with pytest.raises(ValueError, match="encoded with another row length: 500 and 600"):
        ConversationMixture([files[0], shorter], [1, 1], 0)
    with pytest.raises(ValueError, match="no chat files"):
        ConversationMixture([], [], 0)
    with pytest.raises(ValueError, match="2 sources and 1 weights"):
        ConversationMixture(files, [1], 0)
    with pytest.raises(ValueError, match="validation=1 is the share"):
        ConversationMixture(files, [1, 1], 0, validation=1)
    with pytest.raises(ValueError, match=r"all 20 rows of small\.jsonl are held out; lower validation=0\.99"):
        ConversationMixture(files[1:], [1], 0, validation=0.9999999)
    with pytest.raises(ValueError, match=r"rows \[8\] of a batch of 8"):
        Batches(ConversationMixture(files, [1, 1], 0).batch, 8, [8])
    with pytest.raises(ValueError, match="next_row=-1"):
        Batches(ConversationMixture(files, [1, 1], 0).batch, 8, [0], next_row=-1)


# ---- held-out dialogues ----


def test_the_same_dialogues_are_held_out_under_every_encoding(tmp_path):
    """By their text, so equal ones together; about 80 of 400, whose standard deviation is 9."""
    rows = [{"messages": [user(f"{i % 300}"), says("b")]} for i in range(400)]
    write(tmp_path / "x.jsonl", *rows)
    held = made(tmp_path / "x.jsonl", tmp_path / "data").held_out(0.2)
    assert 44 < held.sum() < 116
    assert np.array_equal(held[:100], held[300:])
    for other in ({"loss_mask": "finetune_py"}, {"length": 300}, {"truncate": "end"}):
        assert np.array_equal(made(tmp_path / "x.jsonl", tmp_path / "data", **other).held_out(0.2), held)
    assert (made(tmp_path / "x.jsonl", tmp_path / "data").held_out(0.1) <= held).all()


@pytest.mark.parametrize("packed", [True, False])
def test_held_out_dialogues_are_evaluated_once_each(two, packed):
    files, rows = two
    held = validation_batches(files, 1 << 30, batch_size=5, packed=packed, validation=0.3)
    assert all(batch["inputs"].shape == (5, 600) for batch in held.batches)
    found = [dialogue for batch in held.batches for dialogue in taken_apart(batch)]
    wanted = [expected(rows[s][i]) for s, file in enumerate(files) for i in np.flatnonzero(file.held_out(0.3))]
    filling = [(ids, weights) for ids, weights in found if not any(weights)]
    assert sorted(d for d in found if d not in filling) == sorted(
        (ids, [*map(float, mask[1:])]) for ids, mask in wanted
    )
    assert sum(batch["weights"].sum() for batch in held.batches) == sum(map(len, held.tokens))
    assert len(held.tokens[1]) == files[1].table["trained"][files[1].held_out(0.3)].sum()


def test_a_smaller_limit_evaluates_a_part(two):
    files, _ = two

    def dialogues(limit):
        held = validation_batches(files, limit, 4, validation=0.3)
        return {tuple(ids) for batch in held.batches for ids, weights in taken_apart(batch) if any(weights)}

    little, more, everything = dialogues(1), dialogues(5000), dialogues(1 << 30)
    assert len(little) == 2  # one of each file, at least
    assert little < more < everything
    assert sum(map(len, more)) <= 5000


def test_nothing_held_out_gives_no_rows(two):
    held = validation_batches(two[0], 1 << 20, 4, validation=0)
    assert held.batches == []
    assert [len(tokens) for tokens in held.tokens] == [0, 0]


# ---- real data ----


def test_real_tool_dialogues_become_rows(shared, qwen_vocab, tmp_path):
    """Glaive's calls in Chinese: the mask is chatml's, and nothing but ReAct's own words and answers is trained."""
    path = tmp_path / "glaive.jsonl"
    convert([shared / "sft_pref_demo" / "glaive_toolcall_zh_demo.jsonl.gz"], path, to="conversation")
    dialogues = encode_file(path, qwen_vocab, Encoding("assistant", 2048), tmp_path / "data", progress=False)
    assert len(dialogues) > 200
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = 0
    for i in range(len(dialogues)):
        row = json.loads(lines[int(dialogues.origin(i).rpartition(":")[2]) - 1])
        assert isinstance(validate(row), ConversationRow)
        ids, mask = encode_with_mask(
            qwen_vocab, react_messages(row["messages"], row.get("tools", ()), "first"), "assistant"
        )
        if len(ids) <= 2049:
            whole += 1
            got = dialogues.read(i)
            assert (got[0].tolist(), got[1].tolist()) == (ids, mask)
    assert whole > 200
    mixture = ConversationMixture([dialogues], [1], 0)
    assert mixture.utilisation[0] > 0.9
    assert taken_apart(mixture.batch(range(8)))
