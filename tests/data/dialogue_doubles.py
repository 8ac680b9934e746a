"""Doubles for the tests of dialogues: a tokenizer with ChatML, and conversations.

A module of its own, so that spawned workers can unpickle the tokenizer.
"""

import random

from chat_doubles import says, user, write
from data_doubles import ByteTokenizer

from qwenjax.data.dialogues import Encoding, prepare
from qwenjax.text import chatml
from qwenjax.text.react import react_messages


class ChatBytes(ByteTokenizer):
    """An id per UTF-8 byte, end of text and ChatML's control tokens."""

    name, size, im_start, im_end = "chat-bytes", 259, 257, 258

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())


TOKENIZER = ChatBytes(fingerprint="c" * 64)


def expected(row, policy="assistant"):
    """Ids and mask by the public functions of the text room."""
    turns = chatml.turns_with_mask(TOKENIZER, react_messages(row["messages"], row.get("tools", ()), "first"), policy)
    return [i for ids, _ in turns for i in ids], [m for _, mask in turns for m in mask]


def chats(path, number, seed=0):
    """Writes conversations of 1 to 3 exchanges, all of fewer than 600 tokens; the rows."""
    rng = random.Random(seed)

    def text(i):
        return f"{seed}.{i} " + "".join(rng.choices("abc é中\n.", k=rng.randrange(45))) + "!"

    rows = []
    for i in range(number):
        rows.append({"messages": [turn(text(i)) for _ in range(rng.randrange(1, 4)) for turn in (user, says)]})
    write(path, *rows)
    return rows


def made(path, root, policy="assistant", length=600, truncate="turns", **more):
    return prepare(path, TOKENIZER, Encoding(policy, length, truncate), root, progress=False, **more)
