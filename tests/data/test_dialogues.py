"""Dialogues as ids and masks: encoding and truncation, the folder on disk."""

from itertools import chain

import pytest
from chat_doubles import ADD, CALLING, says, user, write
from dialogue_doubles import TOKENIZER, ChatBytes, chats, expected, made
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.chat_format.chatml import LOSS_MASKS
from qwenjax.data.conversations import store
from qwenjax.data.conversations.encode import Encoding, encode
from qwenjax.data.conversations.schema import RowError, validate
from qwenjax.data.conversations.store import ChatDataset, encode_file

SYSTEM = {"role": "system", "content": "S"}
PAIR = {"prompt": [user("a")], "responses": [says("b"), says("c")]}
DROPPED = "oldest turns dropped to fit 91 tokens"


def conversation(*messages, **more):
    return validate({"messages": list(messages), **more})


def encoded(row, loss_mask, length, truncate):
    """Ids, mask and change of a conversation."""
    [(ids, mask, rating)], change, text = encode(row, TOKENIZER, Encoding(loss_mask, length, truncate))
    assert (rating, text) == (0, None)
    return ids, mask, change


# ---- encoding ----


@pytest.mark.parametrize("loss_mask", LOSS_MASKS)
def test_ids_and_masks_are_those_of_the_chat_format(tmp_path, loss_mask):
    rows = [*chats(tmp_path / "x.jsonl", 20), {"messages": CALLING, "tools": [ADD]}]
    dialogues = made(write(tmp_path / "x.jsonl", *rows), tmp_path / "data", loss_mask, length=2000)
    assert len(dialogues) == 21
    for i, row in enumerate(rows):
        ids, mask = dialogues.read(i)
        assert (ids.tolist(), mask.tolist()) == expected(row, loss_mask)
        assert dialogues.origin(i) == f"x.jsonl:{i + 1}"
        assert dialogues.table[i]["tokens"] == len(ids)
        assert dialogues.table[i]["trained"] == mask[1:].sum()


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6), st.integers(60, 300))
def test_the_newest_exchanges_that_fit_are_kept(sizes, length):
    """Whole exchanges, the system turn first, and one more would be too long."""
    exchanges = [[user("u" * a), says("v" * b)] for a, b in sizes]

    def whole(first):
        return expected({"messages": [SYSTEM, *chain(*exchanges[first:])]})

    fitting = [first for first in range(len(exchanges)) if len(whole(first)[0]) <= length + 1]
    row = conversation(SYSTEM, *chain(*exchanges))
    if not fitting:
        with pytest.raises(RowError, match="tokens") as error:
            encoded(row, "assistant", length, "turns")
        assert error.value.reason == f"conversation longer than {length + 1} tokens, even after dropping earlier turns"
        return
    ids, mask, shortened = encoded(row, "assistant", length, "turns")
    assert (ids, mask) == whole(fitting[0])
    assert shortened == (f"oldest turns dropped to fit {length + 1} tokens" if fitting[0] else "")


def test_tools_are_still_described_when_the_first_turn_goes():
    tail = {"messages": CALLING, "tools": [ADD]}
    ids, mask = expected(tail)
    row = conversation(user("old"), says("old"), *CALLING, tools=[ADD])
    assert encoded(row, "assistant", len(ids) - 1, "turns")[:2] == (ids, mask)
    with pytest.raises(RowError, match="tokens"):  # a call is never torn from its result
        encoded(row, "assistant", len(ids) - 2, "turns")


def test_cut_at_the_end_keeps_the_beginning():
    row = conversation(user("a"), says("b" * 100))
    ids, mask = expected({"messages": row.messages})
    for length, change in ((len(ids) - 1, ""), (len(ids) - 2, f"cut at {len(ids) - 1} tokens")):
        assert encoded(row, "assistant", length, "end") == (ids[: length + 1], mask[: length + 1], change)


def test_a_first_token_with_loss_is_nothing_to_train_on():
    """The mask of the released code begins with 1; cut behind the header of the system turn no other is left."""
    row = conversation(user("a"), says("b"))
    assert encoded(row, "finetune_py", 60, "end")[1][0] == 1
    with pytest.raises(RowError, match="no trained token in the first 5"):
        encoded(row, "finetune_py", 4, "end")


@pytest.mark.parametrize(
    ("truncate", "length", "left_out", "shortened"),
    [
        ("turns", 90, {"conversation longer than 91 tokens, even after dropping earlier turns": 1}, {DROPPED: 1}),
        ("end", 90, {"no trained token in the first 91 (loss_mask assistant)": 1}, {"cut at 91 tokens": 1}),
        ("leave_out", 90, {"conversation longer than 91 tokens": 2}, {}),
        ("leave_out", 900, {}, {}),
    ],
)
def test_what_was_left_out_or_shortened_is_counted(tmp_path, truncate, length, left_out, shortened):
    """Tokens: 38 of the system turn, 8 + text of a user, 13 + text of the assistant. So 61, 92 (or 69) and 120."""
    rows = [[user("a"), says("b")], [user("a"), says("b"), user("c"), says("d" * 9)], [user("e" * 60), says("f")]]
    path = write(tmp_path / "x.jsonl", *({"messages": messages} for messages in rows), {"x": 1})
    dialogues = made(path, tmp_path / "data", length=length, truncate=truncate)
    counts = {reason: count for reason, (count, _) in dialogues.index["left_out"].items()}
    assert counts == {**left_out, "not a row of the schema": 1}
    assert {reason: count for reason, (count, _) in dialogues.index["shortened"].items()} == shortened
    assert len(dialogues) == 3 - sum(left_out.values())
    said = "\n".join(dialogues.lines())
    assert "left out 1 x not a row of the schema (first: x.jsonl:4: " in said
    assert all(f"shortened 1 x {reason} (first: x.jsonl:2)" in said for reason in shortened)


# ---- the folder on disk ----


def test_a_prepared_file_is_not_encoded_again(tmp_path, monkeypatch):
    chats(tmp_path / "x.jsonl", 5)
    first = made(tmp_path / "x.jsonl", tmp_path / "data")
    monkeypatch.setattr(store, "encode_part", None)
    assert made(tmp_path / "x.jsonl", tmp_path / "data").directory == first.directory
    for change in ({"loss_mask": "finetune_py"}, {"length": 599}, {"truncate": "end"}):
        with pytest.raises(TypeError):  # it would be encoded
            made(tmp_path / "x.jsonl", tmp_path / "data", **change)
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(TypeError):
        made(tmp_path / "x.jsonl", tmp_path / "data")


def test_a_killed_run_leaves_nothing_that_counts(tmp_path, monkeypatch):
    rows = chats(tmp_path / "x.jsonl", 20)
    monkeypatch.setattr(store, "CHUNK", 4)
    real, calls = store.encode_part, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(store, "encode_part", dies)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "x.jsonl", tmp_path / "data")
    assert not list((tmp_path / "data").glob("*/index.json"))
    again = made(tmp_path / "x.jsonl", tmp_path / "data")
    assert [again.read(i)[0].tolist() for i in range(20)] == [expected(row)[0] for row in rows]


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 7)
    path = write(tmp_path / "x.jsonl", *chats(tmp_path / "x.jsonl", 60), {"x": 1})
    one, two = (made(path, tmp_path / str(n), workers=n).directory for n in (1, 2))
    for name in (*store.FILES[:-1], "index.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("name", store.FILES)
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_folder_is_noticed(tmp_path, name, harm):
    chats(tmp_path / "x.jsonl", 5)
    file = made(tmp_path / "x.jsonl", tmp_path / "data", kind="prompt").directory / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "delete":
        file.unlink()
    else:
        file.write_bytes(data if harm == "flip" else data[:-1])
    with pytest.raises(ValueError, match=rf"{name} is not what was written.*delete .* and run again"):
        made(tmp_path / "x.jsonl", tmp_path / "data", kind="prompt")


def test_an_unreadable_index_is_an_error_that_says_what_to_do(tmp_path):
    chats(tmp_path / "x.jsonl", 5)
    index = made(tmp_path / "x.jsonl", tmp_path / "data").directory / "index.json"
    for text, message in (
        ("{", "holds no encoded chat file: .*index.json is no JSON"),
        ('{"version": 99}', "has version 99, this program reads 2"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=f"{message}.*delete .* and run again"):
            made(tmp_path / "x.jsonl", tmp_path / "data")
    index.unlink()
    with pytest.raises(ValueError, match=r"holds no encoded chat file: .*No such file.*index\.json"):
        ChatDataset(index.parent)
    assert len(made(tmp_path / "x.jsonl", tmp_path / "data")) == 5  # unfinished: made anew


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("conversation", [], "no conversation to train on in .*x.jsonl: it is empty"),
        ("conversation", [{"messages": [user("a")]}], "left out 1 x ends with a user turn"),
        ("conversation", [PAIR], "left out 1 x a preference, not a conversation"),
        ("conversation", [{"messages": [user("a"), says("b" * 999)]}] * 2, "left out 2 x conversation longer than 601"),
        ("preference", [{"prompt": [user("a")]}], "no preference to .* left out 1 x a prompt, not a preference"),
        ("preference", [{"messages": [user("a"), says("b")]}], "left out 1 x a conversation, not a preference"),
        ("preference", [PAIR | {"responses": [says("b"), says(" b ")]}], "left out 1 x equal responses"),
        ("preference", [PAIR | {"responses": [says("b"), says(" ")]}], "left out 1 x empty assistant turn"),
        ("preference", [PAIR | {"responses": [says("b"), says("c" * 600)]}], "left out 1 x preference longer than 600"),
        ("prompt", [{"prompt": [user("a" * 600)]}], "no prompt to .* left out 1 x prompt longer than 600 tokens, even"),
        ("prompt", [{"prompt": [user("a"), says("b")]}], "left out 1 x prompt ends with an assistant turn"),
    ],
)
def test_a_file_without_a_usable_row_is_an_error(tmp_path, kind, rows, message):
    with pytest.raises(ValueError, match=message):
        made(write(tmp_path / "x.jsonl", *rows), tmp_path / "data", kind=kind)
    assert not list((tmp_path / "data").glob("*/index.json"))


def test_what_cannot_work_is_refused(tmp_path):
    chats(tmp_path / "x.jsonl", 5)
    with pytest.raises(ValueError, match=r"no file .*y\.jsonl; wanted conversations"):
        made(tmp_path / "y.jsonl", tmp_path / "data")
    with pytest.raises(ValueError, match="loss_mask='asistant' is unknown; known: assistant, "):
        Encoding("asistant")
    with pytest.raises(ValueError, match="truncate='cut' is unknown; known: turns, end, leave_out"):
        Encoding(truncate="cut")
    with pytest.raises(ValueError, match="kind='pairs' is unknown; known: conversation, preference, prompt"):
        Encoding(kind="pairs")
    with pytest.raises(ValueError, match="would cut off the token where its score is read in a preference"):
        Encoding(truncate="end", kind="preference")
    with pytest.raises(ValueError, match=r"truncate='end' would cut off .* in a prompt; wanted 'turns' or 'leave_out'"):
        Encoding(truncate="end", kind="prompt")
    with pytest.raises(
        ValueError, match="loss_mask='finetune_py' is for conversations; a preference takes 'assistant'"
    ):
        Encoding("finetune_py", kind="preference")
    with pytest.raises(ValueError, match="length=1 must be at least 2"):
        Encoding(length=1)
    plain = ChatBytes()
    plain.im_start = None
    with pytest.raises(ValueError, match="does not chat in ChatML"):
        encode_file(tmp_path / "x.jsonl", plain, Encoding(), tmp_path / "data")
