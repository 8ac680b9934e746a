"""Rows of the chat schema as dialogues: token ids and loss mask, cut to a maximum length.

They are written by the chat template of the tokenizer, if it has one, else in ChatML with tools as ReAct.

conversation  one dialogue
preference    one dialogue per response, which ends with the turn, as a rollout does: there its score is read
prompt        one dialogue, which ends where the assistant begins to write
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qwenjax.chat_format import chatml
from qwenjax.chat_format.chatml import LOSS_MASKS
from qwenjax.chat_format.openai import openai_messages
from qwenjax.chat_format.react import react_messages
from qwenjax.common.hashing import keyed_hash
from qwenjax.data.conversations import schema
from qwenjax.data.conversations.schema import RowError, Turn
from qwenjax.data.shards.format import token_dtype
from qwenjax.sources.slices import Report

TRUNCATIONS = {
    "turns": "drop the oldest exchanges, keep the system turn; left out if the last exchange is still too long",
    "end": "cut on the right, as the released finetune.py does; conversations only",
    "leave_out": "leave the row out",
}
TABLE = np.dtype(  # one entry per dialogue
    [
        ("tokens", "<i4"),
        ("trained", "<i4"),  # targets with loss
        ("key", "<u8"),  # hash of its row's text
        ("prompt", "<u8"),  # hash of the text of its row's prompt, everything before the response
        ("group", "<i4"),  # number of its row, counted without the rows left out
        ("rating", "<f4"),  # of a response: its score, or minus its position in the ranking; else 0
        ("text", "<i4"),  # bytes of its line in texts.jsonl
    ]
)


@dataclass(frozen=True)
class Encoding:
    """How the rows of a file become tokens."""

    loss_mask: str = "assistant"  # a key of `LOSS_MASKS`: which tokens of a conversation carry loss
    length: int = 2048  # sequence length: inputs per row of a batch
    truncate: str = "turns"  # a key of `TRUNCATIONS`: what happens to dialogues of more than `limit` tokens
    kind: str = "conversation"  # one of `schema.KINDS`: what the rows are used as

    def __post_init__(self):
        for name, known in (("loss_mask", LOSS_MASKS), ("truncate", TRUNCATIONS), ("kind", schema.KINDS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        if self.length < 2:
            raise ValueError(f"length={self.length} must be at least 2")
        if self.kind == "conversation":
            return
        if self.truncate == "end":
            end = "the token where its score is read" if self.kind == "preference" else "where the assistant begins"
            raise ValueError(f"truncate='end' would cut off {end} in a {self.kind}; wanted 'turns' or 'leave_out'")
        if self.loss_mask != "assistant":
            raise ValueError(f"loss_mask={self.loss_mask!r} is for conversations; a {self.kind} takes 'assistant' only")

    @property
    def limit(self) -> int:
        """Maximum tokens of a dialogue. A conversation has one more than `length`: the last input needs a target."""
        return self.length + (self.kind == "conversation")


class Dialogue(NamedTuple):
    """What a model reads."""

    ids: list[int]
    mask: list[int]  # 1: predicting this id carries loss
    rating: float = 0.0


class Encoded(NamedTuple):
    """The dialogues of a row."""

    dialogues: list[Dialogue]
    change: str  # how they were shortened, or ''
    text: dict | None = None  # of a prompt: the turns that the ids hold, and its answer


def encode(row: schema.Row, tokenizer, encoding: Encoding) -> Encoded:
    """The dialogues of a valid row; RowError if it cannot be used.

    Rows of every kind can be used as prompts: a conversation's last turn or the best response is then the answer.
    """
    if encoding.kind not in ("prompt", schema.kind_of(row)):
        raise RowError(f"a {schema.kind_of(row)}, not a {encoding.kind}")
    kinds = {"conversation": _conversation, "preference": _preference, "prompt": _prompt}
    return kinds[encoding.kind](row, tokenizer, encoding)


def _conversation(row: schema.ConversationRow, tokenizer, encoding: Encoding) -> Encoded:
    def encode_turns(turns: list[Turn]) -> tuple[list[int], list[int]]:
        return conversation_ids(tokenizer, turns, row.tools, encoding.loss_mask)

    limit = encoding.limit
    if encoding.truncate == "end":
        ids, mask = encode_turns(row.messages)
        change = f"cut at {limit} tokens" if len(ids) > limit else ""
        ids, mask = ids[:limit], mask[:limit]
    else:
        _, (ids, mask), change = _truncate_turns(row.messages, encode_turns, encoding, limit)
    if not any(mask[1:]):  # the first token is never a target
        where = f" in the first {limit}" if change else ""
        raise RowError(f"no trained token{where} (loss_mask {encoding.loss_mask})")
    return Encoded([Dialogue(ids, mask)], change)


def _preference(row: schema.PreferenceRow, tokenizer, encoding: Encoding) -> Encoded:
    answers = [answer_ids(tokenizer, row.prompt, response, row.tools) for response in row.responses]
    if min(map(len, answers)) < 2:
        raise RowError("empty response", "a response has no token")
    if len(set(map(tuple, answers))) < len(answers):
        raise RowError("equal responses", "two responses are different texts, but the same token ids")
    with np.errstate(over="ignore"):
        ratings = np.array(row.scores or -np.arange(len(answers)), np.float32)
    if not (np.isfinite(ratings).all() and (ratings[1:] < ratings[:-1]).all()):
        raise RowError("scores that are equal in float32", f"scores {row.scores} are not different in float32")

    limit = encoding.limit - max(map(len, answers))
    _, (ids, mask), change = _truncate_prompt(row.prompt, row.tools, tokenizer, encoding, limit)
    rated = zip(answers, ratings.tolist())
    return Encoded([Dialogue(ids + answer, mask + [1] * len(answer), rating) for answer, rating in rated], change)


def _prompt(row: schema.Row, tokenizer, encoding: Encoding) -> Encoded:
    if isinstance(row, schema.ConversationRow):
        answer = row.messages[-1]["content"]
    else:
        answer = row.responses[0]["content"] if isinstance(row, schema.PreferenceRow) else row.answer
    turns, (ids, mask), change = _truncate_prompt(_prompt_turns(row), row.tools, tokenizer, encoding, encoding.limit)
    return Encoded([Dialogue(ids, mask)], change, {"prompt": turns, "answer": answer or None})


def _prompt_turns(row: schema.Row) -> list[Turn]:
    """The turns that the last assistant turn, or each response, answers."""
    return row.messages[:-1] if isinstance(row, schema.ConversationRow) else row.prompt


def _truncate_prompt(turns: list[Turn], tools: list[dict], tokenizer, encoding: Encoding, limit: int):
    """`_truncate_turns` with ids up to where the assistant begins to write, and a mask of zeros."""

    def encode_turns(turns: list[Turn]) -> tuple[list[int], list[int]]:
        ids = prompt_ids(tokenizer, turns, tools)
        return ids, [0] * len(ids)

    return _truncate_turns(turns, encode_turns, encoding, limit)


# ---- turns as token ids ----


def conversation_ids(
    tokenizer, turns: list[Turn], tools: list[dict], loss_mask: str = "assistant"
) -> tuple[list[int], list[int]]:
    """Ids of turns, and for each whether it carries loss. RowError if the chat format cannot express them."""
    if tokenizer.chat_template is None:
        return tokenizer.encode_training(_to_chatml(turns, tools), loss_mask)
    return _by_template(tokenizer.encode_training, turns, tools, loss_mask=loss_mask)


def prompt_ids(tokenizer, turns: list[Turn], tools: list[dict]) -> list[int]:
    """Ids of turns up to where the assistant begins to write. RowError as `conversation_ids`."""
    if tokenizer.chat_template is not None:
        return _by_template(tokenizer.encode_chat, turns, tools)
    messages = _to_chatml(turns, tools)
    open_turn = _open_assistant_turn(messages)
    ids = chatml.encode_chat(tokenizer, messages[:-1] if open_turn else messages)
    return ids + tokenizer.encode_ordinary(open_turn)


def answer_ids(tokenizer, prompt: list[Turn], response: Turn, tools: list[dict]) -> list[int]:
    """Ids of a response, encoded apart from its prompt as the tokens of a rollout are: all share the prompt's ids."""
    if tokenizer.chat_template is None:
        open_turn = _open_assistant_turn(_to_chatml(prompt, tools))
        text = _to_chatml([*prompt, response], tools)[-1]["content"].removeprefix(open_turn)
        return [*tokenizer.encode_ordinary(text), tokenizer.turn_end]
    ids, mask = _by_template(tokenizer.encode_training, [*prompt, response], tools)
    start = max(i for i in range(1, len(ids)) if mask[i] and not mask[i - 1])
    return [token for token, trained in zip(ids[start:], mask[start:]) if trained]


def _open_assistant_turn(messages: list[chatml.Message]) -> str:
    """The text of an assistant's turn that it continues after tool results: its calls and the results; or ''."""
    return messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""


def _to_chatml(turns: list[Turn], tools: list[dict]) -> list[chatml.Message]:
    """ChatML messages. The first user turn describes the tools, in prompts too, so that prompts look as in training."""
    try:
        return react_messages(turns, tools, "first")
    except ValueError as error:
        raise RowError("calls that ReAct text cannot express", str(error)) from None


def _by_template(encode: Callable, turns: list[Turn], tools: list[dict], **arguments):
    """What `encode` of a tokenizer with a template makes of turns. RowError with the words of one that refuses."""
    messages, schemas = openai_messages(turns, tools)
    try:
        return encode(messages, tools=schemas, **arguments)
    except ValueError as error:
        raise RowError("turns that the chat template refuses", str(error)) from None


def _truncate_turns(
    turns: list[Turn], encode_turns: Callable[[list[Turn]], tuple[list, list]], encoding: Encoding, limit: int
) -> tuple[list[Turn], tuple[list, list], str]:
    """The system turn and as many of the newest exchanges as fit, their ids and mask, and what was changed, or ''.

    Cuts before user turns, so a call stays with its result. `encode_turns` gives ids and mask.
    """
    encoded = encode_turns(turns)
    if len(encoded[0]) <= limit:
        return turns, encoded, ""
    reason = f"{encoding.kind} longer than {encoding.limit} tokens"
    detail = f"{len(encoded[0]) + encoding.limit - limit} tokens"
    if encoding.truncate == "leave_out":
        raise RowError(reason, detail)
    users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    shorter = [[*turns[: users[0]], *turns[user:]] for user in users[1:]]  # the longest first
    first = bisect_left(shorter, True, key=lambda kept: len(encode_turns(kept)[0]) <= limit)
    if first == len(shorter):
        raise RowError(f"{reason}, even after dropping earlier turns", detail)
    return shorter[first], encode_turns(shorter[first]), f"oldest turns dropped to fit {encoding.limit} tokens"


class EncodedPart(NamedTuple):
    """Encoded dialogues, one after another."""

    ids: np.ndarray  # uint16 or uint32 [tokens]
    mask: np.ndarray  # uint8 [tokens]
    table: np.ndarray  # TABLE [dialogues]; groups count from 0 in each part
    origins: list[str]  # of each dialogue: 'NAME:LINE' in its file
    texts: list[bytes]  # of each prompt: a line of JSON
    left_out: Report
    shortened: Report


def encode_part(objects: Sequence[tuple[str, object]], tokenizer, encoding: Encoding) -> EncodedPart:
    """The dialogues of some parsed lines, each given with its origin ('NAME:LINE')."""
    left_out, shortened = Report(), Report()
    all_ids: list[int] = []
    all_mask: list[int] = []
    table, origins, texts, group = [], [], [], 0
    for origin, value in objects:
        try:
            row = schema.validate(value)
            dialogues, change, text = encode(row, tokenizer, encoding)
        except RowError as error:
            left_out.note(error.reason, error.at(origin))
            continue
        if change:
            shortened.note(change, origin)
        line = b"" if text is None else json.dumps(text, ensure_ascii=False).encode() + b"\n"
        hashes = _hashes(row, encoding)
        for ids, mask, rating in dialogues:
            all_ids += ids
            all_mask += mask
            table.append((len(ids), sum(mask[1:]), *hashes, group, rating, len(line)))
            origins.append(origin)
            texts.append(line)
        group += 1
    ids = np.array(all_ids, token_dtype(tokenizer.size))
    return EncodedPart(ids, np.array(all_mask, np.uint8), np.array(table, TABLE), origins, texts, left_out, shortened)


def _hashes(row: schema.Row, encoding: Encoding) -> tuple[int, int]:
    """Hashes of the text, not the ids, of a row and of its prompt: every vocabulary and length holds out the same."""

    def hashed(*parts: object) -> int:
        return keyed_hash("dialogue", 0, json.dumps([*parts, row.tools], ensure_ascii=False, sort_keys=True))

    prompt = hashed(_prompt_turns(row))
    if encoding.kind == "prompt":
        return prompt, prompt
    if isinstance(row, schema.ConversationRow):
        return hashed(row.messages), prompt
    return hashed(row.prompt, row.responses), prompt
