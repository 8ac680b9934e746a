"""Doubles for the tests of dialogues: a tokenizer with ChatML, and conversations.

A module of its own, so that spawned workers can unpickle the tokenizer.
"""

import random

from chat_doubles import says, user, write
from data_doubles import ByteTokenizer

from qwenjax.chat_format import chatml
from qwenjax.chat_format.chatml import turns_with_mask
from qwenjax.chat_format.react import react_messages
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.conversations.store import encode_file
from qwenjax.tokenizer import Tokenizer


class ChatBytes(ByteTokenizer):
    """An id per UTF-8 byte, end of text and ChatML's control tokens."""

    name, size, im_start, im_end, turn_end, chat_template = "chat-bytes", 259, 257, 258, 258, None
    # ChatML as every tokenizer without a template has it
    check_chat, encode_chat, encode_training = Tokenizer.check_chat, Tokenizer.encode_chat, Tokenizer.encode_training
    chat_fingerprint = Tokenizer.chat_fingerprint

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())


TOKENIZER = ChatBytes(fingerprint="c" * 64)


def expected(row, loss_mask="assistant"):
    """Ids and mask by the public functions of the text room."""
    turns = turns_with_mask(TOKENIZER, react_messages(row["messages"], row.get("tools", ()), "first"), loss_mask)
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


def made(path, root, loss_mask="assistant", length=600, truncate="turns", kind="conversation", **more):
    return encode_file(path, TOKENIZER, Encoding(loss_mask, length, truncate, kind), root, progress=False, **more)


def lists(path, number, seed=0):
    """Writes preferences of 2 to 4 responses, a third of them with scores, all of fewer than 300 tokens; the rows."""
    rng = random.Random(seed)
    rows = []
    for i in range(number):
        responses = [says(f"{seed}.{i}.{j}" + "é" * rng.randrange(40)) for j in range(rng.randrange(2, 5))]
        rows.append({"prompt": [user(f"{seed}.{i}?" + "u" * rng.randrange(40))], "responses": responses})
        if i % 3 == 0:
            rows[-1]["scores"] = [2.5 - j for j in range(len(responses))]
    write(path, *rows)
    return rows


def prompt_ids(row):
    """Ids of what a row's assistant is to answer, by the public functions of the text room. No calls."""
    return chatml.encode_chat(TOKENIZER, react_messages(row["prompt"], row.get("tools", ()), "first"))


def response_ids(text):
    """Ids of a response: its text and the end of its turn."""
    return [*TOKENIZER.encode_ordinary(text), TOKENIZER.im_end]
