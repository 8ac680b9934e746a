"""Rows as people read them: which documents a row was cut from; which tokens of a dialogue carry loss.

A row becomes a `Shown`: titles, and blocks of tokens with a mark each. `describe` and `terminal` write it as lines,
`show_html` as a page.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from qwenjax.chat_format import chatml
from qwenjax.chat_format.loss_mask import turns_with_mask
from qwenjax.chat_format.react import react_messages
from qwenjax.data.batches.text import TextMixture
from qwenjax.data.conversations.schema import ConversationRow, PreferenceRow, PromptRow, Turn, kind_of

END = "⟦end⟧"  # where a document ends; "…" is where the row cuts one
LOSS = "⟪⟫"  # around what carries loss, where there is no colour
GREEN, DIM, BOLD, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


class Piece(NamedTuple):
    """Text and the ids that spell it: one, or several that share a character."""

    text: str
    ids: tuple[int, ...]
    mark: int  # 1: carries loss


class ShownBlock(NamedTuple):
    """A turn, a response or a document."""

    title: str
    pieces: list[Piece]


class ShownRow(NamedTuple):
    """A row: its title, what else is to be said of it, and its blocks, the last of which may be alternatives."""

    title: str
    facts: list[str]
    blocks: list[ShownBlock]
    alternatives: int = 0


def pieces(tokenizer, ids: Sequence[int], marks: Iterable[int]) -> list[Piece]:
    """Ids as pieces; their texts are those of `tokenizer.decode(ids)`."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    out: list[Piece] = []
    held: tuple[int, ...] = ()
    for token, mark in zip(ids, marks):
        held = (*held, token)
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            out.append(Piece(text, held, mark))
            held = ()
    if rest := decoder.decode(b"", final=True):  # a character that never became whole
        if not held:
            last = out.pop()
            rest, held = last.text + rest, last.ids
        out.append(Piece(rest, held, mark))
    return out


# ---- rows of pretraining ----


def text_row(mixture: TextMixture, row: int, tokenizer) -> ShownRow:
    """A row of the training stream: a block for each document."""
    place, tokens = mixture.locate(row), mixture.row(row)
    first, end = place.offset, place.offset + len(tokens)
    directory = mixture.shards[place.source].directory
    where = f"source {place.source} ({directory}), epoch {place.epoch}, window {place.window}"
    blocks = []
    for span in mixture.documents(row):
        a, b = max(span.start, first), min(span.stop, end)
        begins, ends = a == span.start, b == span.stop
        part = f"its tokens {a - span.start} to {b - span.start - 1} of {span.stop - span.start}"
        title = f"{span.origin}: {part}, {a - first} to {b - first - 1} of the row"
        ids = tokens[a - first : b - first].tolist()
        inside = pieces(tokenizer, ids[:-1] if ends else ids, [1] * len(ids))
        cut = Piece("…", (), 1)
        before, after = [] if begins else [cut], Piece(END, (ids[-1],), 1) if ends else cut
        blocks.append(ShownBlock(title, [*before, *inside, after]))
    return ShownRow(f"row {row}: {where}, tokens {first} to {end - 1}", [], blocks)


def text_row_lines(mixture: TextMixture, row: int, tokenizer) -> list[str]:
    """A row as lines: where it is, then for each document its origin, its tokens here, and the text they spell."""
    shown = text_row(mixture, row, tokenizer)
    lines = [shown.title]
    for block in shown.blocks:
        lines += [f"--- {block.title}", "".join(piece.text for piece in block.pieces)]
    return [*lines, ""]


# ---- rows of chat data ----


def chat_row(
    row: ConversationRow | PreferenceRow | PromptRow, tokenizer, loss_mask: str = "finetune_py", title: str = "row"
) -> ShownRow:
    """A row of chat data as a model reads it, tool turns as ReAct text; what carries loss is marked.

    Of a conversation that is what the loss mask (`chat_format.loss_mask.LOSS_MASKS`) says; of a preference, what the responses add to
    the prompt; of a prompt, nothing.

    Raises:
      ValueError: an unknown loss mask, or calls that ReAct text cannot say.
    """
    facts = [f"{name}: {value}" for name, value in (("id", row.id), ("source", row.source)) if value]
    if isinstance(row, ConversationRow):
        messages = chatml.with_system(react_messages(row.messages, row.tools, "first"))
        turns = turns_with_mask(tokenizer, messages, loss_mask)
        blocks = [ShownBlock(m["role"], pieces(tokenizer, *turn)) for m, turn in zip(messages, turns)]
        total, loss = sum(len(ids) for ids, _ in turns), sum(sum(mask) for _, mask in turns)
        share = f"{total} tokens, {loss} with loss ({loss / total:.0%}), {_counted(len(row.messages), 'turn')}"
        return ShownRow(f"{title}: conversation, {share}", facts, blocks)
    prompt = _ids(tokenizer, row.prompt, row.tools)
    first = ShownBlock("prompt", pieces(tokenizer, prompt, [0] * len(prompt)))
    size = f"{title}: {kind_of(row)}, {_counted(len(row.prompt), 'turn')} of {len(prompt)} tokens"
    if isinstance(row, PromptRow):
        return ShownRow(size, facts + ([] if row.answer is None else [f"answer: {row.answer}"]), [first])
    added = [_ids(tokenizer, [*row.prompt, response], row.tools)[len(prompt) :] for response in row.responses]
    count = len(added)
    names = ["chosen", "rejected"] if count == 2 else [f"response {i + 1} of {count}" for i in range(count)]
    names = [f"{name}, {len(ids)} tokens" for name, ids in zip(names, added)]
    if row.scores:
        names = [f"{name}, score {score:g}" for name, score in zip(names, row.scores)]
        facts.append("margin: " + ", ".join(f"{a - b:g}" for a, b in zip(row.scores, row.scores[1:])))
    responses = [ShownBlock(name, pieces(tokenizer, ids, [1] * len(ids))) for name, ids in zip(names, added)]
    lengths = ", ".join(str(len(ids)) for ids in added)
    return ShownRow(f"{size}, responses of {lengths}", facts, [first, *responses], count)


def _ids(tokenizer, turns: list[Turn], tools: list[dict]) -> list[int]:
    """Ids of turns; if the assistant is to speak next, up to where it does."""
    messages = react_messages(turns, tools, "first")
    speaks = turns[-1]["role"] != "assistant"
    ids = chatml.encode_chat(tokenizer, messages, speaks and messages[-1]["role"] != "assistant")
    return ids[:-1] if speaks and messages[-1]["role"] == "assistant" else ids  # after a result, its turn goes on


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# ---- lines ----


def printable(text: str) -> str:
    """Text without characters that move the cursor, change colours or hide: data must not steer a terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", _visible, text)


def _visible(found: re.Match) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"⟨{code:04X}⟩"


def chat_row_lines(shown: ShownRow, colour: bool) -> list[str]:
    """A row of chat data as lines; what carries loss is green, or between the signs of `LOSS`."""
    bold, dim, plain = (BOLD, DIM, PLAIN) if colour else ("", "", "")
    before, after = (GREEN, PLAIN) if colour else LOSS

    def text(run: Iterable[Piece]) -> str:
        parts = [(mark, printable("".join(p.text for p in same))) for mark, same in groupby(run, lambda p: p.mark)]
        return "".join(f"{before}{said}{after}" if mark else f"{dim}{said}{plain}" for mark, said in parts)

    lines = [f"{bold}{printable(shown.title)}{plain}", *(f"  {printable(fact)}" for fact in shown.facts)]
    if shown.alternatives:
        for block in shown.blocks:
            lines += [f"{bold}--- {block.title}{plain}", text(block.pieces)]
    else:  # one text: the roles are in it
        lines.append(text(piece for block in shown.blocks for piece in block.pieces))
    return [*lines, ""]
