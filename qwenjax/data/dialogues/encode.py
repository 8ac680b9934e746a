"""A conversation as token ids and loss mask, no longer than a row: ChatML, tool turns as ReAct text."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qwenjax.data.chat.schema import Conversation, RowError, kind_of, validate
from qwenjax.data.rows import Report
from qwenjax.data.shards import token_dtype
from qwenjax.data.worker import keyed_hash
from qwenjax.text import chatml
from qwenjax.text.react import react_messages

TRUNCATIONS = {
    "turns": "the oldest exchanges go, system turn and newest stay; left out if the last exchange alone is too long",
    "end": "cut on the right, as the released finetune.py does (spec §7)",
    "leave_out": "not trained on",
}
TABLE = np.dtype([("tokens", "<i4"), ("trained", "<i4"), ("key", "<u8")])  # of a dialogue; see `Part`


@dataclass(frozen=True)
class Encoding:
    """How conversations become tokens."""

    policy: str = "assistant"  # a key of `chatml.POLICIES`: whose tokens carry loss
    length: int = 2048  # L, inputs per row; a dialogue has at most L + 1 tokens, as the last input needs a target
    truncate: str = "turns"  # a key of `TRUNCATIONS`: what happens to longer ones

    def __post_init__(self):
        for name, known in (("policy", chatml.POLICIES), ("truncate", TRUNCATIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        if self.length < 2:
            raise ValueError(f"length={self.length} must be at least 2")


def encode(row: Conversation, tokenizer, how: Encoding) -> tuple[list[int], list[int], str]:
    """Ids, mask (1: predicting this id carries loss) and how the dialogue was shortened, if it was.

    Raises:
      RowError: it must be left out: too long, nothing to train on, or calls that ReAct text cannot say.
    """
    limit, shortened = how.length + 1, ""
    ids, mask = _encoded(row, row.messages, tokenizer, how)
    if len(ids) > limit:
        detail = f"{len(ids)} tokens"
        if how.truncate == "leave_out":
            raise RowError(f"longer than {limit} tokens", detail)
        if how.truncate == "end":
            ids, mask, shortened = ids[:limit], mask[:limit], f"cut at {limit} tokens"
        else:
            ids, mask = _newest(row, tokenizer, how, detail)
            shortened = f"oldest turns dropped to fit {limit} tokens"
    if not any(mask[1:]):  # the first token is never a target
        why = f"no trained token in the first {limit}" if shortened else "no trained token"
        raise RowError(f"{why} (policy {how.policy})")
    return ids, mask, shortened


def _encoded(row: Conversation, messages: list, tokenizer, how: Encoding) -> tuple[list[int], list[int]]:
    try:
        plain = react_messages(messages, row.tools, "first")
    except ValueError as error:
        raise RowError("calls that ReAct text cannot say", str(error)) from None
    return chatml.encode_with_mask(tokenizer, plain, how.policy)


def _newest(row: Conversation, tokenizer, how: Encoding, detail: str) -> tuple[list[int], list[int]]:
    """As many of the newest exchanges as fit, after the system turn.

    Cut where users speak, in the turns of the schema: a call stays with its result, and the description of the tools
    moves to the user turn that is now the first.
    """
    users = [i for i, turn in enumerate(row.messages) if turn["role"] == "user"]
    system = row.messages[: users[0]]

    def kept(first: int) -> tuple[list[int], list[int]]:
        return _encoded(row, [*system, *row.messages[users[first] :]], tokenizer, how)

    first = bisect_left(range(len(users)), True, lo=1, key=lambda i: len(kept(i)[0]) <= how.length + 1)
    if first == len(users):
        raise RowError(f"last exchange longer than {how.length + 1} tokens", detail)
    return kept(first)


@dataclass
class Part:
    """Encoded dialogues, one after another."""

    ids: np.ndarray  # uint16 or uint32 [tokens]
    mask: np.ndarray  # uint8 [tokens]
    table: np.ndarray  # TABLE [dialogues]: tokens, targets with loss, and a hash of the text for the held-out split
    places: list[str]  # of each in its file: 'NAME:LINE'
    left_out: Report = field(default_factory=Report)
    shortened: Report = field(default_factory=Report)


def encode_part(objects: Sequence[tuple[str, object]], tokenizer, how: Encoding) -> Part:
    """The dialogues among some parsed lines, given with their places."""
    left_out, shortened = Report(), Report()
    all_ids: list[int] = []
    all_mask: list[int] = []
    table, places = [], []
    for place, value in objects:
        try:
            row = validate(value)
            if not isinstance(row, Conversation):
                raise RowError(f"a {kind_of(row)}, not a conversation")
            ids, mask, change = encode(row, tokenizer, how)
        except RowError as error:
            left_out.note(error.reason, place if str(error) == error.reason else f"{place}: {error}")
            continue
        if change:
            shortened.note(change, place)
        all_ids += ids
        all_mask += mask
        # of the text, not the ids: the same dialogues are held out whatever the vocabulary, policy and length
        text = json.dumps([row.messages, row.tools], ensure_ascii=False, sort_keys=True)
        table.append((len(ids), sum(mask[1:]), keyed_hash("dialogue", 0, text)))
        places.append(place)
    ids = np.array(all_ids, token_dtype(tokenizer.size))
    return Part(ids, np.array(all_mask, np.uint8), np.array(table, TABLE), places, left_out, shortened)
