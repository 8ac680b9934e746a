"""Prompts: what they are made from, order, batches, texts, held-out prompts."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from chat_doubles import ADD, CALL, CALLING, says, user, write
from dialogue_doubles import TOKENIZER, lists, made, prompt_ids
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.chat_format import chatml
from qwenjax.chat_format.react import react_messages
from qwenjax.data.batches.prompts import PromptMixture, batch_shapes
from qwenjax.data.batches.text import Batches
from qwenjax.data.conversations.convert import convert
from qwenjax.data.conversations.encode import Encoding, encode
from qwenjax.data.conversations.schema import RowError, validate
from qwenjax.data.conversations.store import ChatDataset, encode_file

SYSTEM = {"role": "system", "content": "S"}


def encoded(row, length=600, truncate="turns"):
    """Ids, change, turns and answer of a prompt."""
    [(ids, mask, rating)], change, text = encode(
        validate(row), TOKENIZER, Encoding("assistant", length, truncate, "prompt")
    )
    assert (mask, rating) == ([0] * len(ids), 0)
    return ids, change, text["prompt"], text["answer"]


def questions(path, number, answers=True):
    rows = [{"prompt": [user(f"é{i} + 1?")]} | ({"answer": f"{i + 1}"} if answers else {}) for i in range(number)]
    return write(path, *rows), rows


# ---- encoding ----


@pytest.mark.parametrize(
    ("row", "turns", "answer"),
    [
        ({"prompt": [user("a")]}, [user("a")], None),
        ({"prompt": [user("a")], "answer": "b"}, [user("a")], "b"),
        ({"prompt": [SYSTEM, user("a")], "responses": [says("b"), says("c")]}, [SYSTEM, user("a")], "b"),
        (
            {"messages": [user("a"), says("b"), user("c"), says("d")]},
            [user("a"), says("b"), user("c")],
            "d",
        ),
    ],
)
def test_rows_of_all_kinds_are_prompts(row, turns, answer):
    """The ids are those of `encode_chat`, and end where the assistant is to write."""
    ids, change, asked, reference = encoded(row)
    assert ids == chatml.encode_chat(TOKENIZER, turns)
    assert ids[-11:] == [TOKENIZER.im_start, *b"assistant\n"]
    assert (change, asked, reference) == ("", turns, answer)


def test_after_a_result_the_assistant_goes_on_in_the_same_turn():
    """A call, its result and 'Thought:'; what is still to be called is no reference answer."""
    ids, _, turns, answer = encoded({"messages": CALLING, "tools": [ADD]}, 2000)
    [asked, begun] = react_messages(CALLING[:3], [ADD], "first")
    assert begun["content"].endswith("Observation: 4\nThought:")
    assert ids == [*chatml.encode_chat(TOKENIZER, [asked]), *begun["content"].encode()]
    assert (turns, answer) == (CALLING[:3], "4")
    ids, _, turns, answer = encoded({"messages": [user("a"), says("", tool_calls=[CALL])], "tools": [ADD]}, 2000)
    assert ids == prompt_ids({"prompt": [user("a")], "tools": [ADD]})
    assert answer is None


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=5), st.integers(40, 300))
def test_the_newest_exchanges_that_fit_are_kept(sizes, length):
    exchanges = [[user("u" * a), says("v" * b)] for a, b in sizes]
    whole = [[SYSTEM, *chain(*exchanges[first:]), user("x")] for first in range(len(sizes) + 1)]
    fitting = [turns for turns in whole if len(prompt_ids({"prompt": turns})) <= length]
    if not fitting:
        with pytest.raises(RowError) as error:
            encoded({"prompt": whole[0]}, length)
        assert error.value.reason == f"prompt longer than {length} tokens, even after dropping earlier turns"
        return
    ids, change, turns, _ = encoded({"prompt": whole[0]}, length)
    assert turns == fitting[0]
    assert ids == prompt_ids({"prompt": turns})
    assert bool(change) == (turns != whole[0])
    if change:
        with pytest.raises(RowError) as error:
            encoded({"prompt": whole[0]}, length, "leave_out")
        assert error.value.reason == f"prompt longer than {length} tokens"


@pytest.mark.parametrize("workers", [1, 2])
def test_texts_are_read_back(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("qwenjax.data.conversations.store.CHUNK", 7)
    path, rows = questions(tmp_path / "x.jsonl", 30)
    write(path, {"x": 1}, *rows, {"prompt": [user("e\u2028\n")]})
    file = made(path, tmp_path / "data", kind="prompt", workers=workers)
    assert [file.text(i) for i in range(30)] == rows
    assert file.text(30) == {"prompt": [user("e\u2028\n")], "answer": None}
    assert file.origin(0) == "x.jsonl:2"
    assert file.lines()[0].startswith("x.jsonl: 31 prompts, 31 different, of ")
    assert file.lines()[1].startswith("left out 1 x not a row of the schema (first: x.jsonl:1")


# ---- batches ----


def test_batches_and_texts_are_of_the_same_rows(tmp_path):
    paths = [questions(tmp_path / f"{n}.jsonl", n)[0] for n in (60, 70)]
    mixture = PromptMixture([made(path, tmp_path, kind="prompt", length=100) for path in paths], [1, 2], 0)
    batch, texts = mixture.batch(range(300)), mixture.texts(range(300))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == batch_shapes(300, 100)
    for tokens, n, text in zip(batch["prompts"], batch["lengths"], texts, strict=True):
        assert tokens.tolist() == prompt_ids(text) + [mixture.eot] * (100 - n)
        assert n < 100
    sources = [mixture.locate(row).source for row in range(300)]
    for s, file in enumerate(mixture.files):
        first = Counter(
            text["answer"] for row, text in enumerate(texts) if sources[row] == s and not mixture.locate(row).epoch
        )
        assert first == {file.text(int(i))["answer"]: 1 for i in np.flatnonzero(~file.held_out(0.03))}


def test_resuming_anywhere_equals_reading_on(tmp_path):
    file = made(questions(tmp_path / "x.jsonl", 80)[0], tmp_path, kind="prompt")
    straight = PromptMixture([file], [1], seed=5)
    again = PromptMixture([ChatDataset(file.directory)], [1], seed=5)
    with Batches(again.batch, 16, range(4, 12), next_row=37) as batches:
        for step in range(6):
            after, found = next(batches)
            assert after == 37 + 16 * (step + 1)
            rows = 37 + 16 * step + np.arange(4, 12)
            wanted = straight.batch(rows)
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
            assert again.texts(rows) == straight.texts(rows)
    assert straight.describe(3).startswith(f"row 3: epoch 0, prompt {straight.locate(3).window}, x.jsonl:")


@pytest.mark.parametrize("copies", [1, 25])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_file_of_few_prompts_is_trained_on_whole(tmp_path, number, copies):
    """None of them may vanish, however its hash falls; `held_out` then gives each once, and the lines say so."""
    _, rows = questions(tmp_path / "x.jsonl", number)
    file = made(write(tmp_path / "x.jsonl", *rows * copies), tmp_path, kind="prompt")
    mixture = PromptMixture([file], [1], 0, validation=0.9)
    seen = Counter(text["answer"] for text in mixture.texts(range(number * copies)))
    assert seen == {row["answer"]: copies for row in rows}
    assert mixture.lines() == [
        f"x.jsonl: {number * copies} prompts to train on, {mixture.utilisation[0]:.1%} filled; 0 held out "
        f"(only {number} different prompts)"
    ]
    batch, texts = mixture.held_out(100)
    assert sorted(text["answer"] for text in texts) == [row["answer"] for row in rows]
    assert batch["prompts"].shape == (number, 600)


# ---- held-out prompts ----


def test_held_out_prompts_are_a_fixed_sample_of_those_not_trained_on(tmp_path):
    files = [made(questions(tmp_path / f"{n}.jsonl", n)[0], tmp_path, kind="prompt") for n in (200, 90)]
    mixture = PromptMixture(files, [1, 1], 0, validation=0.2)
    everything, texts = mixture.held_out(1000)
    held = Counter(text["prompt"][0]["content"] for text in texts)
    # the second file's questions are in the first, too, and held out there as well
    wanted = [file.text(int(i))["prompt"][0]["content"] for file in files for i in np.flatnonzero(file.held_out(0.2))]
    assert held == Counter(wanted)
    assert 40 < len(texts) < 80
    assert not set(held) & {text["prompt"][0]["content"] for text in mixture.texts(range(600))}
    for n in (0, 1, 7, 1000):
        batch, some = PromptMixture(files, [2, 1], seed=9, validation=0.2).held_out(n)
        assert some == texts[:n]
        assert all(np.array_equal(batch[name], everything[name][:n]) for name in everything)
    assert {len(text["prompt"]) for text in texts} == {1}
    assert [prompt_ids(text) for text in texts] == [
        tokens[:n].tolist() for tokens, n in zip(everything["prompts"], everything["lengths"])
    ]
    assert mixture.held_out(2)[1][1] in [files[1].text(i) for i in range(90)]  # files take turns
    assert mixture.files_without_held_out == []
    none = PromptMixture(files, [1, 1], 0, validation=0)  # an evaluation needs prompts all the same
    assert len(none.held_out(5)[1]) == 5
    assert none.files_without_held_out == [file.index["source"] for file in files]


def test_a_held_out_prompt_comes_once(tmp_path):
    _, rows = questions(tmp_path / "x.jsonl", 100)
    mixture = PromptMixture([made(write(tmp_path / "x.jsonl", *rows * 3), tmp_path, kind="prompt")], [1], 0, 0.2)
    _, texts = mixture.held_out(1000)
    assert len({text["answer"] for text in texts}) == len(texts) == 100 - mixture.rows_per_epoch[0] / 3


def test_a_reward_model_and_a_policy_hold_out_the_same_prompts(tmp_path):
    lists(tmp_path / "x.jsonl", 120)
    one, other = (made(tmp_path / "x.jsonl", tmp_path, kind=kind) for kind in ("preference", "prompt"))
    assert np.array_equal(one.held_out(0.2), other.held_out(0.2))
    assert other.held_out(0.2).any()
    with pytest.raises(
        ValueError, match=r"holds preferences; wanted prompts: encode it with Encoding\(kind='prompt'\)"
    ):
        PromptMixture([one], [1], 0)


# ---- real data ----


def test_real_questions_become_prompts(shared, qwen_vocab, tmp_path):
    convert([shared / "gsm8k" / "test.jsonl.gz"], tmp_path / "gsm8k.jsonl")
    encoding = Encoding("assistant", 256, "turns", "prompt")
    file = encode_file(tmp_path / "gsm8k.jsonl", qwen_vocab, encoding, tmp_path, progress=False)
    assert len(file) > 600
    mixture = PromptMixture([file], [1], 0)
    batch, texts = mixture.batch(range(50)), mixture.texts(range(50))
    for tokens, n, text in zip(batch["prompts"], batch["lengths"], texts):
        assert tokens[:n].tolist() == chatml.encode_chat(qwen_vocab, text["prompt"])
        assert text["answer"].replace(",", "").removeprefix("-").replace(".", "").isdigit()
