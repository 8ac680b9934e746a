"""Preferences as lists of rated responses: encoding, order, batches, held-out lists."""

import json
import unicodedata
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from chat_doubles import ADD, CALL, CALLING, says, user, write
from dialogue_doubles import TOKENIZER, ChatBytes, chats, lists, made, prompt_ids, response_ids
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.chat_format import chatml
from qwenjax.chat_format.react import react_messages
from qwenjax.data.batches.preferences import PreferenceMixture, batch_shapes, validation_batches
from qwenjax.data.batches.text import Batches
from qwenjax.data.conversations.convert import convert
from qwenjax.data.conversations.encode import Encoding, encode
from qwenjax.data.conversations.schema import RowError, validate
from qwenjax.data.conversations.store import ChatDataset, encode_file

SYSTEM = {"role": "system", "content": "S"}


def encoded(row, length=600, truncate="turns", tokenizer=TOKENIZER):
    return encode(validate(row), tokenizer, Encoding("assistant", length, truncate, "preference"))


@pytest.fixture
def two(tmp_path):
    """Two files prepared, of 150 and 60 lists, and their rows."""
    rows = [lists(tmp_path / f"{name}.jsonl", n, seed=n) for name, n in (("big", 150), ("small", 60))]
    return [made(tmp_path / f"{name}.jsonl", tmp_path / "data", kind="preference") for name in ("big", "small")], rows


# ---- encoding ----


def test_responses_follow_the_prompt_as_a_rollout_would_and_end_with_im_end(tmp_path):
    rows = lists(tmp_path / "x.jsonl", 12)
    file, at = made(tmp_path / "x.jsonl", tmp_path / "data", kind="preference"), 0
    assert (file.num_rows, len(file)) == (12, sum(len(row["responses"]) for row in rows))
    for r, row in enumerate(rows):
        prompt = prompt_ids(row)
        assert file.sequences_of_row(r).tolist() == list(range(at, at + len(row["responses"])))
        for j, response in enumerate(row["responses"]):
            ids, mask = file.read(at)
            answer = response_ids(response["content"])
            assert ids.tolist() == prompt + answer
            assert ids[-1] == TOKENIZER.im_end
            assert mask.tolist() == [0] * len(prompt) + [1] * len(answer)
            entry = file.table[at]
            assert (entry["group"], entry["tokens"], entry["trained"]) == (r, len(ids), len(answer))
            assert entry["rating"] == row.get("scores", [0, -1, -2, -3])[j]
            assert file.origin(at) == f"x.jsonl:{r + 1}"
            at += 1


@pytest.mark.parametrize(
    ("prompt", "tools"),
    [
        ([user("a")], []),
        ([SYSTEM, user("a"), says("b"), user("c")], []),
        ([user("2 + 2?")], [ADD]),  # the answers are Thought and Final Answer
        (CALLING[:3], [ADD]),  # the assistant goes on after a result, in the same turn
        ([user("old"), says("old"), *CALLING[:3]], [ADD]),
    ],
)
def test_prompt_and_response_together_are_the_whole_conversation(prompt, tools):
    """With a tokenizer of bytes. Where an id could span the border between them, a rollout has two there, too."""
    responses = [says("4"), says("5", reasoning="hm"), *([says("", tool_calls=[CALL])] if tools else [])]
    dialogues, change, text = encoded({"prompt": prompt, "responses": responses, "tools": tools}, length=3000)
    assert (change, text) == ("", None)
    plain = react_messages(prompt, tools, "first")
    begun = plain.pop()["content"] if plain[-1]["role"] == "assistant" else ""
    asked = [*chatml.encode_chat(TOKENIZER, plain), *begun.encode()]
    for (ids, mask, _), response in zip(dialogues, responses, strict=True):
        turns = react_messages([*prompt, response], tools, "first")
        assert ids == chatml.encode_chat(TOKENIZER, turns, add_generation_prompt=False)
        assert ids[: len(asked)] == asked
        assert mask == [0] * len(asked) + [1] * (len(ids) - len(asked))


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=5),
    st.lists(st.integers(1, 60), min_size=2, max_size=4, unique=True),
    st.integers(40, 300),
)
def test_all_responses_have_the_newest_exchanges_that_fit_the_longest(sizes, answers, length):
    exchanges = [[user("u" * a), says("v" * b)] for a, b in sizes]
    responses = [says("w" * n) for n in answers]

    def asked(first):
        return prompt_ids({"prompt": [SYSTEM, *chain(*exchanges[first:]), user("x")]})

    fitting = [first for first in range(len(sizes) + 1) if len(asked(first)) + max(answers) + 1 <= length]
    row = {"prompt": [SYSTEM, *chain(*exchanges), user("x")], "responses": responses}
    if not fitting:
        with pytest.raises(RowError) as error:
            encoded(row, length)
        assert error.value.reason == f"preference longer than {length} tokens, even after dropping earlier turns"
        assert str(error.value) == f"{len(asked(0)) + max(answers) + 1} tokens"
        return
    dialogues, change, _ = encoded(row, length)
    assert [d.ids for d in dialogues] == [asked(fitting[0]) + response_ids("w" * n) for n in answers]
    assert change == (f"oldest turns dropped to fit {length} tokens" if fitting[0] else "")
    if fitting[0]:
        with pytest.raises(RowError, match=f"{len(asked(0)) + max(answers) + 1} tokens"):
            encoded(row, length, "leave_out")


class Normalising(ChatBytes):
    """Composes characters, as the Qwen vocabulary does, and knows no soft hyphen."""

    def encode_ordinary(self, text):
        return list(unicodedata.normalize("NFC", text).replace("\xad", "").encode())


@pytest.mark.parametrize(
    ("responses", "scores", "reason"),
    [
        (["e\u0301", "é"], None, "equal responses"),
        (["b", "\xad"], None, "empty response"),
        (["b", "c"], [1.000000001, 1], "scores that are equal in float32"),
        (["b", "c"], [1e300, 1], "scores that are equal in float32"),
        (["b", "c", "d"], [1e300, 1e299, 0], "scores that are equal in float32"),
    ],
)
def test_lists_that_prefer_nothing_are_left_out(responses, scores, reason):
    row = {"prompt": [user("a")], "responses": list(map(says, responses)), "scores": scores}
    with pytest.raises(RowError) as error:
        encoded(row, tokenizer=Normalising())
    assert error.value.reason == reason


def test_two_calls_at_once_cannot_be_said():
    responses = [says("4"), says("", tool_calls=[CALL, CALL])]
    with pytest.raises(RowError, match="2 calls at once"):
        encoded({"prompt": [user("a")], "responses": responses, "tools": [ADD]}, 2000)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_numbered_through_chunks_and_what_is_left_out(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("qwenjax.data.conversations.store.CHUNK", 4)
    rows = lists(tmp_path / "x.jsonl", 30)
    write(tmp_path / "x.jsonl", *([{"x": 1}] * 9), *rows[:10], {"x": 1}, *rows[10:])
    file = made(tmp_path / "x.jsonl", tmp_path / "data", kind="preference", workers=workers)
    assert file.table["group"].tolist() == [r for r, row in enumerate(rows) for _ in row["responses"]]
    assert file.origin(int(file.sequences_of_row(10)[0])) == "x.jsonl:21"
    assert f"x.jsonl: 30 lists of {len(file)} responses to 30 different prompts" in file.lines()[0]
    with pytest.raises(ValueError, match="holds preferences; the text is kept for prompts only"):
        file.text(0)


# ---- batches ----


def test_a_batch_written_out(tmp_path):
    """Of bytes: <|im_start|>system\\n<|im_end|>\\n, <|im_start|>user\\nQ<|im_end|>\\n, <|im_start|>assistant\\n."""
    S, E, n = TOKENIZER.im_start, TOKENIZER.im_end, ord("\n")
    prompt = [S, *b"system", n, E, n, S, *b"user", n, ord("Q"), E, n, S, *b"assistant", n]  # 10 + 9 + 11 = 30 tokens
    asked = [{"role": "system", "content": ""}, user("Q")]
    path = write(
        tmp_path / "x.jsonl",
        {"prompt": asked, "responses": [says("a"), says("bc"), says("d")], "scores": [1, 0.5, -2]},
        {"prompt": asked, "responses": [says("e"), says("fg")]},
    )
    mixture = PreferenceMixture([made(path, tmp_path, kind="preference", length=34)], [1], 0, validation=0, responses=3)
    assert (mixture.k, mixture.seq_len, mixture.eot, mixture.rows_per_epoch) == (3, 34, 256, (2,))
    order = [mixture.locate(row).window for row in range(2)]
    batch = mixture.batch([order.index(0), order.index(1)])
    a, bc, d, e, fg = ([*prompt, *text, E] + [256] * (3 - len(text)) for text in (b"a", b"bc", b"d", b"e", b"fg"))
    one = [*range(32), -1, -1]
    two = [*range(33), -1]
    assert {name: array.tolist() for name, array in batch.items()} == {
        "tokens": [[a, bc, d], [e, fg, fg]],  # a response that is not there: the last one again
        "positions": [[one, two, one], [one, two, two]],
        "mask": [
            [[0] * 30 + [1, 1, 0, 0], [0] * 30 + [1, 1, 1, 0], [0] * 30 + [1, 1, 0, 0]],
            [[0] * 30 + [1, 1, 0, 0], [0] * 30 + [1, 1, 1, 0], [0] * 34],
        ],
        "end": [[31, 32, 31], [31, 32, 0]],
        "ratings": [[1, 0.5, -2], [0, -1, 0]],
        "real": [[True, True, True], [True, True, False]],
    }
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == batch_shapes(2, 3, 34)


def taken_apart(batch):
    """{(ids, rating) of the real responses} of each list; checks everything else on the way."""
    out = []
    for tokens, positions, mask, end, ratings, real in zip(
        *(batch[name] for name in ("tokens", "positions", "mask", "end", "ratings", "real"))
    ):
        found = []
        for j in np.flatnonzero(real):
            n = end[j] + 1
            assert tokens[j, end[j]] == TOKENIZER.im_end
            assert positions[j].tolist() == [*range(n)] + [-1] * (len(tokens[j]) - n)
            assert (tokens[j, n:] == TOKENIZER.eot).all()
            first = int(mask[j].argmax())
            assert mask[j].tolist() == [0] * first + [1] * (n - first) + [0] * (len(tokens[j]) - n)
            found.append((tuple(tokens[j, :n].tolist()), float(ratings[j])))
        assert (positions[:, 0] == 0).all()  # no row is empty, real or not
        assert not mask[~real].any()
        assert not end[~real].any()
        assert not ratings[~real].any()
        out.append(tuple(found))
    return out


def wanted(row):
    ratings = row.get("scores", [0, -1, -2, -3])
    prompt = prompt_ids(row)
    return tuple((tuple(prompt + response_ids(r["content"])), s) for r, s in zip(row["responses"], ratings))


def test_every_list_is_read_once_per_epoch_as_it_was_encoded(two):
    files, rows = two
    mixture = PreferenceMixture(files, [1, 1], seed=3, validation=0.1, responses=4)
    held = [file.held_out(0.1) for file in files]
    assert all(0 < h.sum() < len(h) / 2 for h in held)
    assert mixture.rows_per_epoch == tuple(int((~h).sum()) for h in held)
    seen = {0: Counter(), 1: Counter()}
    found = taken_apart(mixture.batch(range(400)))
    for row, got in enumerate(found):
        place, (s, numbers) = mixture.locate(row), mixture.sequences(row)
        r = int(files[s].table["group"][numbers[0]])
        assert got == wanted(rows[s][r])
        assert (
            mixture.describe(row)
            == f"row {row}: epoch {place.epoch}, list {place.window}, {files[s].origin(numbers[0])}"
        )
        seen[s][place.epoch, r] += 1
    for s in (0, 1):
        assert {r: n for (epoch, r), n in seen[s].items() if epoch == 0} == dict.fromkeys(np.flatnonzero(~held[s]), 1)
    assert mixture.lines()[1].startswith(
        f"small.jsonl: {mixture.rows_per_epoch[1]} lists of up to 4 responses to train on, "
    )
    assert mixture.lines()[1].endswith(f"% filled; {held[1].sum()} held out")
    tokens = files[1].per_row("tokens")[~held[1]].sum()
    assert mixture.utilisation[1] == pytest.approx(tokens / (mixture.rows_per_epoch[1] * 4 * 600))


def test_resuming_anywhere_on_any_hosts_equals_reading_on(two):
    files, _ = two
    whole = PreferenceMixture(files, [3, 1], seed=7).batch(range(48))
    again = PreferenceMixture([ChatDataset(file.directory) for file in files], [3, 1], seed=7)  # as a new process would
    for batch, start, mine in [(8, 0, range(8)), (8, 24, range(8)), (6, 7, [1, 4]), (12, 12, range(6, 12))]:
        with Batches(again.batch, batch, mine, next_row=start) as batches:
            for step in range((48 - start) // batch):
                after, found = next(batches)
                assert after == start + (step + 1) * batch
                for name, array in whole.items():
                    assert np.array_equal(found[name], array[start + step * batch + np.array(mine)])
    assert [PreferenceMixture(files, [3, 1], seed=8).locate(r) for r in range(48)] != [
        again.locate(r) for r in range(48)
    ]


def test_of_longer_lists_some_are_read_others_each_time(two):
    files, rows = two
    mixture = PreferenceMixture(files, [1, 1], seed=3, validation=0.1, responses=2)
    found, drawn = taken_apart(mixture.batch(range(400))), {}
    for row, got in enumerate(found):
        s, numbers = mixture.sequences(row)
        r = int(files[s].table["group"][numbers[0]])
        everything = wanted(rows[s][r])
        assert [pair for pair in everything if pair in got] == list(got)  # in their order, each once
        assert len(got) == min(2, len(everything))
        drawn.setdefault((s, r, len(everything)), set()).add(got)
    assert max(len(pairs) for (_, _, n), pairs in drawn.items() if n == 4) > 1
    assert all(len(pairs) == 1 for (_, _, n), pairs in drawn.items() if n == 2)
    again = taken_apart(mixture.batch([7, 300]))
    assert again == [found[7], found[300]]


# ---- held-out lists ----


def test_equal_prompts_are_on_one_side_under_every_encoding(tmp_path):
    """300 prompts, the first 100 of them twice with other responses; about 60 are held out of 300."""
    rows = [{"prompt": [user(f"{i % 300}")], "responses": [says(f"{i}b"), says("c")]} for i in range(400)]
    path = write(tmp_path / "x.jsonl", *rows)
    held = made(path, tmp_path / "data", kind="preference").held_out(0.2)
    assert 30 < held[:300].sum() < 95
    assert np.array_equal(held[:100], held[300:])
    assert np.array_equal(made(path, tmp_path / "data", kind="preference", length=300).held_out(0.2), held)
    assert np.array_equal(made(path, tmp_path / "data", kind="prompt").held_out(0.2), held)
    file = made(path, tmp_path / "data", kind="preference")
    trained = {
        t for row in range(1000) for t in file.table["prompt"][PreferenceMixture([file], [1], 0, 0.2).sequences(row)[1]]
    }
    assert len(trained) == 300 - held[:300].sum()


def test_few_prompts_are_split_by_prompt_and_responses(tmp_path):
    """Of 49 different prompts with 20 lists each about 98 of 980 are held out, and not those of some prompts."""
    rows = [{"prompt": [user(f"{i % 49}")], "responses": [says(f"{i}b"), says("c")]} for i in range(980)]
    file = made(write(tmp_path / "x.jsonl", *rows, *rows[:50]), tmp_path, kind="preference")
    held = file.held_out(0.1)
    assert 55 < held[:980].sum() < 150
    assert len(set(np.flatnonzero(held) % 49)) > 30
    assert np.array_equal(held[:50], held[980:])  # equal lists stay together
    mixture = PreferenceMixture([file], [1], 0, validation=0.1)
    assert mixture.lines()[0].endswith(f"{held.sum()} held out (only 49 different prompts)")
    more = [{"prompt": [user("new")], "responses": [says("b"), says("c")]}]
    by_prompt = made(write(tmp_path / "y.jsonl", *rows, *more), tmp_path, kind="preference").held_out(0.1)
    assert all(len(set(by_prompt[i:980:49])) == 1 for i in range(49))


def test_held_out_lists_are_evaluated_once_each(two):
    files, rows = two
    batches = validation_batches(files, 1 << 30, batch_size=7, validation=0.3, responses=4)
    assert all(batch["tokens"].shape == (7, 4, 600) for batch in batches)
    found = [pair for batch in batches for pair in zip(batch["file"].tolist(), taken_apart(batch))]
    held = [(s, int(r)) for s, file in enumerate(files) for r in np.flatnonzero(file.held_out(0.3))]
    assert len(held) % 7
    assert Counter(pair for pair in found if pair[1]) == Counter((s, wanted(rows[s][r])) for s, r in held)
    assert [bool(got) for _, got in found] == [True] * len(held) + [False] * (-len(held) % 7)
    assert batches[0]["file"].dtype == np.int32
    trained = {
        tuple(ids)
        for row in range(400)
        for ids in PreferenceMixture(files, [1, 1], 0, 0.3, 4).batch([row])["tokens"][0].tolist()
    }
    assert not trained & {tuple(ids) for batch in batches for ids in batch["tokens"].reshape(-1, 600).tolist()}


def test_a_smaller_limit_evaluates_a_part(two):
    files, _ = two

    def evaluated(limit):
        return {got for batch in validation_batches(files, limit, 4, 0.3) for got in taken_apart(batch) if got}

    little, more, everything = evaluated(1), evaluated(9000), evaluated(1 << 30)
    assert len(little) == 2  # one of each file, at least
    assert little < more < everything
    assert sum(len(ids) for got in more for ids, _ in got) <= 9000
    assert validation_batches(files, 1 << 30, 4, validation=0) == []


def test_mixtures_that_cannot_be_are_refused(two, tmp_path):
    files, _ = two
    chats(tmp_path / "chat.jsonl", 5)
    chat = made(tmp_path / "chat.jsonl", tmp_path / "data")
    for read in (lambda: PreferenceMixture([files[0], chat], [1, 1], 0), lambda: validation_batches([chat], 9, 1)):
        with pytest.raises(
            ValueError, match=r"holds conversations; wanted preferences: encode it with Encoding\(kind="
        ):
            read()
    with pytest.raises(ValueError, match="no chat files"):
        PreferenceMixture([], [], 0)
    with pytest.raises(ValueError, match=r"all 60 rows of small\.jsonl are held out; lower validation=0\.99"):
        PreferenceMixture(files[1:], [1], 0, validation=0.9999999)


# ---- real data ----


def test_real_preferences_become_lists(shared, qwen_vocab, tmp_path):
    """hh-rlhf's pairs and OpenAssistant's Chinese rankings: ids are chatml's, every list is whole."""
    path = tmp_path / "rankings.jsonl"
    convert([shared / "oasst_zh" / "oaast_rm_zh.jsonl.gz"], path, to="preference")
    file = encode_file(path, qwen_vocab, Encoding("assistant", 1024, "turns", "preference"), tmp_path, progress=False)
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = 0
    for r in range(file.num_rows):
        numbers = file.sequences_of_row(r)
        row = json.loads(lines[int(file.origin(int(numbers[0])).rpartition(":")[2]) - 1])
        assert len(numbers) == len(row["responses"])
        asked = chatml.encode_chat(qwen_vocab, react_messages(row["prompt"]))
        ids = [file.read(int(i))[0].tolist() for i in numbers]
        if max(map(len, ids)) < 1024 and ids[0][: len(asked)] == asked:
            whole += 1
            for got, response in zip(ids, row["responses"]):
                content = response["content"].lstrip("\n").rstrip()
                assert got == [*asked, *qwen_vocab.encode_ordinary(content), qwen_vocab.im_end]
    assert file.num_rows > 550
    assert whole > 500
    mixture = PreferenceMixture([file], [1], 0)
    batch = mixture.batch(range(64))
    assert (
        batch["tokens"][np.arange(64)[:, None], np.arange(mixture.k), batch["end"]][batch["real"]] == qwen_vocab.im_end
    ).all()
