"""Rows of the chat schema as dialogues: token ids and loss mask, no longer than a model reads. ChatML, tools as ReAct.

conversation  one dialogue
preference    a dialogue for each response, all with the same prompt ids; each ends with the response's <|im_end|>,
              where a reward model reads its score: the ids that a rollout has there
prompt        one dialogue, which ends where the assistant is to write
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from qwenjax.chat_format import chatml
from qwenjax.chat_format.react import react_messages
from qwenjax.data.conversations.schema import (
    KINDS,
    ConversationRow,
    PreferenceRow,
    PromptRow,
    RowError,
    Turn,
    kind_of,
    validate,
)
from qwenjax.data.shards.format import token_dtype
from qwenjax.data.shards.worker import keyed_hash
from qwenjax.sources.slices import Report

TRUNCATIONS = {
    "turns": "the oldest exchanges go, system turn and newest stay; left out if the last exchange alone is too long",
    "end": "cut on the right, as the released finetune.py does (spec §7); conversations only",
    "leave_out": "not trained on",
}
TABLE = np.dtype(  # of a dialogue
    [
        ("tokens", "<i4"),
        ("trained", "<i4"),  # targets with loss
        ("key", "<u8"),  # hash of its row's text
        ("prompt", "<u8"),  # hash of the text of its row's prompt: all before the response
        ("group", "<i4"),  # number of its row, of those kept
        ("rating", "<f4"),  # of a response: its score, or minus its place in the ranking; else 0
        ("text", "<i4"),  # bytes of its line in texts.jsonl
    ]
)


@dataclass(frozen=True)
class Encoding:
    """How the rows of a file become tokens."""

    loss_mask: str = "assistant"  # a key of `chatml.POLICIES`: whose tokens of a conversation carry loss
    length: int = 2048  # L, inputs per row of a batch
    truncate: str = "turns"  # a key of `TRUNCATIONS`: what happens to dialogues of more than `limit` tokens
    kind: str = "conversation"  # one of `schema.KINDS`: what the rows are used as

    def __post_init__(self):
        for name, known in (("loss_mask", chatml.POLICIES), ("truncate", TRUNCATIONS), ("kind", KINDS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        if self.length < 2:
            raise ValueError(f"length={self.length} must be at least 2")
        if self.kind == "conversation":
            return
        if self.truncate == "end":
            end = (
                "the token where its score is read" if self.kind == "preference" else "where the assistant is to write"
            )
            raise ValueError(f"truncate='end' would cut a {self.kind}'s end, {end}; wanted 'turns' or 'leave_out'")
        if self.loss_mask != "assistant":
            raise ValueError(f"loss_mask={self.loss_mask!r} is for conversations; a {self.kind} takes 'assistant' only")

    @property
    def limit(self) -> int:
        """Tokens of a dialogue, at most. A conversation has one more than L, as the last input needs a target."""
        return self.length + (self.kind == "conversation")


class Dialogue(NamedTuple):
    """What a model reads, and what of it carries loss."""

    ids: list[int]
    mask: list[int]  # 1: predicting this id carries loss
    rating: float = 0.0


class Encoded(NamedTuple):
    """The dialogues of a row."""

    dialogues: list[Dialogue]
    change: str  # how they were shortened, if they were
    text: dict | None = None  # of a prompt: its turns, as far as they are in the ids, and its answer


def encode(row: ConversationRow | PreferenceRow | PromptRow, tokenizer, how: Encoding) -> Encoded:
    """The dialogues of a valid row.

    As prompts, rows of all kinds will do: a conversation's last turn and the best response are then the answer.

    Raises:
      RowError: it must be left out: of another kind, too long, nothing to train on, responses that are equal or empty
        as ids, or calls that ReAct text cannot say.
    """
    if how.kind == "prompt":
        return _prompt(row, tokenizer, how)
    if kind_of(row) != how.kind:
        raise RowError(f"a {kind_of(row)}, not a {how.kind}")
    return (_conversation if how.kind == "conversation" else _preference)(row, tokenizer, how)


def _conversation(row: ConversationRow, tokenizer, how: Encoding) -> Encoded:
    def encoded(turns: list[Turn]) -> tuple[list[int], list[int]]:
        return chatml.encode_with_mask(tokenizer, _plain(turns, row.tools), how.loss_mask)

    limit, change = how.limit, ""
    if how.truncate == "end":
        ids, mask = encoded(row.messages)
        if len(ids) > limit:
            ids, mask, change = ids[:limit], mask[:limit], f"cut at {limit} tokens"
    else:
        _, (ids, mask), change = _fitting(row.messages, encoded, how, limit)
    if not any(mask[1:]):  # the first token is never a target
        why = f"no trained token in the first {limit}" if change else "no trained token"
        raise RowError(f"{why} (loss_mask {how.loss_mask})")
    return Encoded([Dialogue(ids, mask)], change)


def _preference(row: PreferenceRow, tokenizer, how: Encoding) -> Encoded:
    begun, answers = _begun(_plain(row.prompt, row.tools)), []
    for response in row.responses:
        text = _plain([*row.prompt, response], row.tools)[-1]["content"]
        assert text.startswith(begun), (text, begun)
        # apart from what it goes on from, as a rollout's tokens are: all responses then share the prompt's ids
        answers.append([*tokenizer.encode_ordinary(text[len(begun) :]), tokenizer.im_end])
    if min(map(len, answers)) < 2:
        raise RowError("empty response", "a response has no token")
    if len(set(map(tuple, answers))) < len(answers):
        raise RowError("equal responses", "two responses are different texts, but the same token ids")
    with np.errstate(over="ignore"):
        ratings = np.array(row.scores or -np.arange(len(answers)), np.float32)
    if not (np.isfinite(ratings).all() and (ratings[1:] < ratings[:-1]).all()):
        raise RowError("scores that float32 cannot tell apart", f"scores are {row.scores}")

    room = how.limit - max(map(len, answers))
    _, (ids, mask), change = _fitting(row.prompt, lambda turns: _asked(turns, row.tools, tokenizer), how, room)
    dialogues = [
        Dialogue([*ids, *answer], [*mask, *[1] * len(answer)], float(rating))
        for answer, rating in zip(answers, ratings)
    ]
    return Encoded(dialogues, change)


def _prompt(row: ConversationRow | PreferenceRow | PromptRow, tokenizer, how: Encoding) -> Encoded:
    if isinstance(row, ConversationRow):
        answer = row.messages[-1]["content"]
    else:
        answer = row.responses[0]["content"] if isinstance(row, PreferenceRow) else row.answer

    whole = _turns_asked(row)
    turns, (ids, mask), change = _fitting(whole, lambda turns: _asked(turns, row.tools, tokenizer), how, how.limit)
    return Encoded([Dialogue(ids, mask)], change, {"prompt": turns, "answer": answer or None})


def _turns_asked(row: ConversationRow | PreferenceRow | PromptRow) -> list[Turn]:
    """The turns that the (last) assistant turn answers."""
    return row.messages[:-1] if isinstance(row, ConversationRow) else row.prompt


def _asked(turns: list[Turn], tools: list[dict], tokenizer) -> tuple[list[int], list[int]]:
    """Ids up to where the assistant is to write, and a mask of zeros."""
    plain = _plain(turns, tools)
    begun = _begun(plain)
    ids = [*chatml.encode_chat(tokenizer, plain[:-1] if begun else plain), *tokenizer.encode_ordinary(begun)]
    return ids, [0] * len(ids)


def _begun(plain: list[chatml.Message]) -> str:
    """What the assistant's turn says already where it is to go on after results: its calls and these."""
    return plain[-1]["content"] if plain[-1]["role"] == "assistant" else ""


def _plain(turns: list[Turn], tools: list[dict]) -> list[chatml.Message]:
    """ChatML messages. Tools are described first in prompts, too: a model is to be asked as it was trained."""
    try:
        return react_messages(turns, tools, "first")
    except ValueError as error:
        raise RowError("calls that ReAct text cannot say", str(error)) from None


def _fitting(
    turns: list[Turn], encoded: Callable[[list[Turn]], tuple[list, list]], how: Encoding, room: int
) -> tuple[list[Turn], tuple[list, list], str]:
    """As many of the newest exchanges as have at most `room` tokens, after the system turn: they, encoded, the change.

    Cut where users speak, in the turns of the schema: a call stays with its result, and the description of the tools
    moves to the user turn that is now the first.

    Args:
      encoded: turns to (ids, mask).
    """
    whole = encoded(turns)
    if len(whole[0]) <= room:
        return turns, whole, ""
    reason, detail = f"{how.kind} longer than {how.limit} tokens", f"{len(whole[0]) + how.limit - room} tokens"
    if how.truncate == "leave_out":
        raise RowError(reason, detail)
    users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]

    def kept(first: int) -> list[Turn]:
        return [*turns[: users[0]], *turns[users[first] :]]

    first = bisect_left(range(len(users)), True, lo=1, key=lambda i: len(encoded(kept(i))[0]) <= room)
    if first == len(users):
        raise RowError(f"{reason}, even its last exchange", detail)
    return kept(first), encoded(kept(first)), f"oldest turns dropped to fit {how.limit} tokens"


@dataclass
class EncodedPart:
    """Encoded dialogues, one after another."""

    ids: np.ndarray  # uint16 or uint32 [tokens]
    mask: np.ndarray  # uint8 [tokens]
    table: np.ndarray  # TABLE [dialogues]; groups are counted from 0 in each part
    places: list[str]  # of each in its file: 'NAME:LINE'
    texts: list[bytes]  # of each prompt: a line of JSON
    left_out: Report = field(default_factory=Report)
    shortened: Report = field(default_factory=Report)


def encode_part(objects: Sequence[tuple[str, object]], tokenizer, how: Encoding) -> EncodedPart:
    """The dialogues of some parsed lines, given with their places."""
    left_out, shortened = Report(), Report()
    all_ids: list[int] = []
    all_mask: list[int] = []
    table, places, texts, group = [], [], [], 0
    for place, value in objects:
        try:
            row = validate(value)
            dialogues, change, text = encode(row, tokenizer, how)
        except RowError as error:
            left_out.note(error.reason, place if str(error) == error.reason else f"{place}: {error}")
            continue
        if change:
            shortened.note(change, place)
        line = b"" if text is None else json.dumps(text, ensure_ascii=False).encode() + b"\n"
        keys = _keys(row, how)
        for ids, mask, rating in dialogues:
            all_ids += ids
            all_mask += mask
            table.append((len(ids), sum(mask[1:]), *keys, group, rating, len(line)))
            places.append(place)
            texts.append(line)
        group += 1
    ids = np.array(all_ids, token_dtype(tokenizer.size))
    return EncodedPart(ids, np.array(all_mask, np.uint8), np.array(table, TABLE), places, texts, left_out, shortened)


def _keys(row: ConversationRow | PreferenceRow | PromptRow, how: Encoding) -> tuple[int, int]:
    """Hashes of what a row says and of what it asks.

    Of the text, not the ids: the same rows are held out whatever the vocabulary, loss mask and length.
    """

    def hashed(*parts: object) -> int:
        return keyed_hash("dialogue", 0, json.dumps([*parts, row.tools], ensure_ascii=False, sort_keys=True))

    asked = hashed(_turns_asked(row))
    if how.kind == "prompt":
        return asked, asked
    return hashed(row.messages) if isinstance(row, ConversationRow) else hashed(row.prompt, row.responses), asked
