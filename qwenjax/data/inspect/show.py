"""Rows as people read them: which documents a row of text was cut from; which tokens of a chat row carry loss.

A row becomes a `ShownRow`: titles, and blocks of tokens with a mark each. `text_row_lines` and `chat_row_lines` make
lines of it, `html.page` a page. `draw_rows` is a picture of what a run reads.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from qwenjax.chat_format import chatml
from qwenjax.chat_format.loss_mask import turns_with_mask
from qwenjax.chat_format.react import react_messages
from qwenjax.common import figures
from qwenjax.data.batches.text import TextMixture
from qwenjax.data.conversations.schema import ConversationRow, PreferenceRow, PromptRow, Turn, kind_of

END = "⟦end⟧"  # where a document ends; "…" is where the row cuts one
LOSS = "⟪⟫"  # around what carries loss, where there is no colour
NAMED_FROM = 60  # tokens of 256 from which a document's name fits into its bar
GREEN, DIM, BOLD, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


class Piece(NamedTuple):
    """Text and its token ids: one, or several that share a character."""

    text: str
    ids: tuple[int, ...]
    mark: int  # 1: carries loss


class ShownBlock(NamedTuple):
    """A turn, a response or a document."""

    title: str
    pieces: list[Piece]


class ShownRow(NamedTuple):
    """A row: its title, other facts, and its blocks, of which the last `alternatives` exclude each other."""

    title: str
    facts: list[str]
    blocks: list[ShownBlock]
    alternatives: int = 0


def pieces(tokenizer, ids: Sequence[int], marks: Iterable[int]) -> list[Piece]:
    """Ids as pieces; their texts are those of `tokenizer.decode(ids)`."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    out: list[Piece] = []
    pending: tuple[int, ...] = ()
    for token, mark in zip(ids, marks):
        pending = (*pending, token)
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            out.append(Piece(text, pending, mark))
            pending = ()
    if remainder := decoder.decode(b"", final=True):  # a character whose last bytes are missing
        if not pending:
            last = out.pop()
            remainder, pending = last.text + remainder, last.ids
        out.append(Piece(remainder, pending, mark))
    return out


# ---- rows of text ----


def text_row(mixture: TextMixture, row: int, tokenizer) -> ShownRow:
    """A row of pretraining: a block for each document."""
    location, tokens = mixture.locate(row), mixture.row(row)
    first, end = location.offset, location.offset + len(tokens)
    directory = mixture.shards[location.source].directory
    where = f"source {location.source} ({directory}), epoch {location.epoch}, window {location.window}"
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
    """A row as lines: where it is, then each document's origin, its tokens in the row, and their text."""
    shown = text_row(mixture, row, tokenizer)
    lines = [shown.title]
    for block in shown.blocks:
        lines += [f"--- {block.title}", "".join(piece.text for piece in block.pieces)]
    return [*lines, ""]


def draw_rows(mixture: TextMixture, first: int, rows: int, ahead: int, path: Path | str | None = None) -> Any:
    """A matplotlib figure of what a run reads.

    On the left, where in its source each of the first `ahead` rows is. Every epoch is a permutation, so points fill the
    height evenly, and none comes twice before the next epoch. On the right, `rows` rows from `first` on, with a bar and
    the name of each document in them.

    Args:
      path: also write it there, as a PNG.
    """
    figure, (left, right) = figures.canvas(13, 1.6 + 0.45 * max(rows, 5), 2)
    locations = [mixture.locate(row) for row in range(ahead)]
    for source, shards in enumerate(mixture.shards):
        windows = mixture.order.windows[source]
        at = [(row, l.window / windows, l.epoch) for row, l in enumerate(locations) if l.source == source]
        color, share = figures.COLORS[source % len(figures.COLORS)], len(at) / len(locations)
        label = f"{shards.directory.name}: {share:.0%} of the rows, {len(at) / windows:.2f} epochs"
        if at:
            xs, ys, epochs = zip(*at)
            left.scatter(
                xs, ys, s=6, color=color, label=label, alpha=[0.9 if epoch % 2 == 0 else 0.45 for epoch in epochs]
            )
    left.set(
        title="position in the corpus, by row", xlabel="row (odd epochs are fainter)", ylabel="share of the source"
    )
    left.legend(frameon=True, facecolor=figures.CARD, loc="upper center", bbox_to_anchor=(0.5, -0.16))

    for line in range(rows):
        row = first + line
        location = mixture.locate(row)
        begin, end = location.offset, location.offset + mixture.seq_len + 1
        for n, span in enumerate(mixture.documents(row)):
            a, b = max(span.start, begin) - begin, min(span.stop, end) - begin
            color = figures.COLORS[location.source % len(figures.COLORS)]
            right.barh(line, b - a, left=a, color=color, alpha=0.55 if n % 2 else 0.3, edgecolor=figures.CARD, lw=1.5)
            if b - a >= NAMED_FROM * mixture.seq_len / 256:
                name = span.origin.rsplit("/", 1)[-1]
                right.text(a + 2, line, name, va="center", fontsize=7, clip_on=True)
    right.set_yticks(range(rows), range(first, first + rows))
    right.invert_yaxis()
    right.set(title="the documents in a batch", xlabel="token of the row", ylabel="row", xlim=(0, mixture.seq_len + 1))
    if path:
        figures.save(figure, Path(path))
    return figure


# ---- rows of chat data ----


def chat_row(
    row: ConversationRow | PreferenceRow | PromptRow, tokenizer, loss_mask: str = "finetune_py", title: str = "row"
) -> ShownRow:
    """A row of chat data as a model reads it, tool turns as ReAct text; what carries loss is marked.

    In a conversation `loss_mask` (one of `chat_format.loss_mask.LOSS_MASKS`) decides; in a preference it is what the
    responses add to the prompt; in a prompt, nothing.

    Raises:
      ValueError: an unknown loss mask, or calls that ReAct text cannot express.
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
    """Ids of turns, up to where the assistant begins if the next turn is its."""
    messages = react_messages(turns, tools, "first")
    is_next = turns[-1]["role"] != "assistant"
    ids = chatml.encode_chat(tokenizer, messages, is_next and messages[-1]["role"] != "assistant")
    # after a tool's result the assistant's turn goes on
    return ids[:-1] if is_next and messages[-1]["role"] == "assistant" else ids


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# ---- lines ----


def printable(text: str) -> str:
    """Text without characters that move the cursor, change colours or hide: data must not steer a terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", _visible, text)


def _visible(match: re.Match) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"⟨{code:04X}⟩"


def chat_row_lines(shown: ShownRow, colour: bool) -> list[str]:
    """A row of chat data as lines; what carries loss is green, or between the signs of `LOSS`."""
    bold, dim, plain = (BOLD, DIM, PLAIN) if colour else ("", "", "")
    before, after = (GREEN, PLAIN) if colour else LOSS

    def text(run: Iterable[Piece]) -> str:
        parts = [(mark, printable("".join(p.text for p in same))) for mark, same in groupby(run, lambda p: p.mark)]
        return "".join(f"{before}{part}{after}" if mark else f"{dim}{part}{plain}" for mark, part in parts)

    lines = [f"{bold}{printable(shown.title)}{plain}", *(f"  {printable(fact)}" for fact in shown.facts)]
    if shown.alternatives:
        for block in shown.blocks:
            lines += [f"{bold}--- {block.title}{plain}", text(block.pieces)]
    else:  # one text: the roles are in it
        lines.append(text(piece for block in shown.blocks for piece in block.pieces))
    return [*lines, ""]
