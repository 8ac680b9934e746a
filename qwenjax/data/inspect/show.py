"""Rows as people read them: which documents a row of text was cut from; which tokens of a chat row carry loss."""

import codecs
import html
import re
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from qwenjax.common import figures
from qwenjax.data.batches.text import TextMixture
from qwenjax.data.conversations.encode import answer_ids, conversation_ids, prompt_ids
from qwenjax.data.conversations.schema import ConversationRow, PreferenceRow, PromptRow, kind_of

END = "⟦end⟧"  # where a document ends; "…" is where the row cuts one
LOSS = "⟪⟫"  # around what carries loss, where there is no colour
NAMED_FROM = 1 / 4  # of a row, from which a document's name fits into its bar
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
        inside = pieces(tokenizer, ids[:-1] if ends else ids, [0] * len(ids))
        cut = Piece("…", (), 0)
        before, after = [] if begins else [cut], Piece(END, (ids[-1],), 0) if ends else cut
        blocks.append(ShownBlock(title, [*before, *inside, after]))
    return ShownRow(f"row {row}: {where}, tokens {first} to {end - 1}", [], blocks)


def draw_rows(mixture: TextMixture, first: int, rows: int, ahead: int, path: Path | str) -> Any:
    """Draws what a run reads into a PNG; returns the matplotlib figure.

    On the left, where in its source each of the first `ahead` rows is. On the right, `rows` rows from `first` on, with
    a bar for each document in them.
    """
    figure, (left, right) = figures.canvas(13, 1.6 + 0.45 * max(rows, 5), 2)
    locations = [(row, mixture.locate(row)) for row in range(ahead)]
    for source, shards in enumerate(mixture.shards):
        windows, color = mixture.order.windows[source], figures.COLORS[source % len(figures.COLORS)]
        points = [(row, location.window / windows) for row, location in locations if location.source == source]
        share = f"{len(points) / ahead:.0%} of the rows, {len(points) / windows:.2f} epochs"
        left.scatter(*zip(*points or [(None, None)]), s=6, color=color, label=f"{shards.directory.name}: {share}")
    left.set(title="position in the corpus, by row", xlabel="row", ylabel="share of the source")
    left.legend(facecolor=figures.CARD, loc="upper center", bbox_to_anchor=(0.5, -0.16))

    for row in range(first, first + rows):
        location = mixture.locate(row)
        color = figures.COLORS[location.source % len(figures.COLORS)]
        for span in mixture.documents(row):
            a, b = max(span.start - location.offset, 0), min(span.stop - location.offset, mixture.seq_len + 1)
            right.barh(row, b - a, left=a, color=color, alpha=0.5, edgecolor=figures.CARD)
            if b - a >= NAMED_FROM * mixture.seq_len:
                right.text(a, row, span.origin.rsplit("/", 1)[-1], va="center", fontsize=7, clip_on=True)
    right.set_yticks(range(first, first + rows))
    right.invert_yaxis()
    right.set(title="the documents in a batch", xlabel="token of the row", ylabel="row", xlim=(0, mixture.seq_len + 1))
    figures.save(figure, Path(path))
    return figure


# ---- rows of chat data ----


def chat_row(
    row: ConversationRow | PreferenceRow | PromptRow, tokenizer, loss_mask: str = "finetune_py", title: str = "row"
) -> ShownRow:
    """A row of chat data as a model reads it, with its tools; what carries loss is marked.

    In a conversation `loss_mask` decides, in a preference it is what the responses add to the prompt.
    """
    facts = [f"{name}: {value}" for name, value in (("id", row.id), ("source", row.source)) if value]
    if isinstance(row, ConversationRow):
        ids, mask = conversation_ids(tokenizer, row.messages, row.tools, loss_mask)
        turns = _turns(tokenizer, ids)
        roles = [turn["role"] for turn in row.messages]  # a format may begin with a system turn of its own
        roles = {len(roles): roles, len(roles) + 1: ["system", *roles]}.get(len(turns), [""] * len(turns))
        blocks = [ShownBlock(role, pieces(tokenizer, ids[a:b], mask[a:b])) for role, (a, b) in zip(roles, turns)]
        share = f"{len(ids)} tokens, {sum(mask)} with loss ({sum(mask) / len(ids):.0%}), {len(row.messages)} turns"
        return ShownRow(f"{title}: conversation, {share}", facts, blocks)
    prompt = prompt_ids(tokenizer, row.prompt, row.tools)
    first = ShownBlock("prompt", pieces(tokenizer, prompt, [0] * len(prompt)))
    size = f"{title}: {kind_of(row)}, {len(row.prompt)} turns of {len(prompt)} tokens"
    if isinstance(row, PromptRow):
        return ShownRow(size, facts + ([] if row.answer is None else [f"answer: {row.answer}"]), [first])
    added = [answer_ids(tokenizer, row.prompt, response, row.tools) for response in row.responses]
    count = len(added)
    names = ["chosen", "rejected"] if count == 2 else [f"response {i + 1} of {count}" for i in range(count)]
    names = [f"{name}, {len(ids)} tokens" for name, ids in zip(names, added)]
    if row.scores:
        names = [f"{name}, score {score:g}" for name, score in zip(names, row.scores)]
        facts.append("margin: " + ", ".join(f"{a - b:g}" for a, b in zip(row.scores, row.scores[1:])))
    responses = [ShownBlock(name, pieces(tokenizer, ids, [1] * len(ids))) for name, ids in zip(names, added)]
    lengths = ", ".join(str(len(ids)) for ids in added)
    return ShownRow(f"{size}, responses of {lengths}", facts, [first, *responses], count)


def _turns(tokenizer, ids: list[int]) -> list[tuple[int, int]]:
    """Where the turns of a conversation lie: each ends with the token that ends an assistant's turn and a line end."""
    ends = [i + 1 for i, token in enumerate(ids) if token == tokenizer.turn_end]
    ends = [end + (tokenizer.decode(ids[end : end + 1]) == "\n") for end in ends]
    return list(pairwise([0, *(end for end in ends if end < len(ids)), len(ids)]))


# ---- lines ----


def printable(text: str) -> str:
    """Text without characters that move the cursor, change colours or hide: data must not steer a terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", _visible, text)


def _visible(match: re.Match) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"⟨{code:04X}⟩"


def row_lines(shown: ShownRow, colour: bool = False, by_document: bool = False) -> list[str]:
    """A row as lines; what carries loss is green, or between the signs of `LOSS`.

    Alternatives, or all blocks with `by_document`, come under their titles; the others are one text.
    """
    bold, dim, plain = (BOLD, DIM, PLAIN) if colour else ("", "", "")
    before, after = (GREEN, PLAIN) if colour else LOSS

    def text(run: Iterable[Piece]) -> str:
        parts = [(mark, printable("".join(p.text for p in same))) for mark, same in groupby(run, lambda p: p.mark)]
        return "".join(f"{before}{part}{after}" if mark else f"{dim}{part}{plain}" for mark, part in parts)

    lines = [f"{bold}{printable(shown.title)}{plain}", *(f"  {printable(fact)}" for fact in shown.facts)]
    if shown.alternatives or by_document:
        for block in shown.blocks:
            lines += [f"{bold}--- {printable(block.title)}{plain}", text(block.pieces)]
    else:
        lines.append(text(piece for block in shown.blocks for piece in block.pieces))
    return [*lines, ""]


# ---- a page ----

# grey and half-transparent colours are readable on the light and the dark page of a browser alike
STYLE = """
:root { color-scheme: light dark; --line: hsl(0 0% 50% / 30%); }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 100rem; font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2.2rem 0 .2rem; }
h2, h3, p, .text { overflow-wrap: anywhere; } p, h3, i { color: GrayText; } p { margin: .1rem 0; }
section { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; overflow: hidden; }
h3 { font-size: .8rem; margin: 0; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
.text { padding: .5rem .6rem; white-space: pre-wrap; unicode-bidi: plaintext; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: .5rem; align-items: start; }
span { box-shadow: inset 1px 0 var(--line); } span:hover { outline: 2px solid #f78166; }
span.n { background: hsl(0 0% 50% / 12%); } span.l { background: hsl(135 60% 45% / 35%); }
i { font-style: normal; user-select: none; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(heading: str, legend: str, rows: Iterable[ShownRow], by_document: bool = False) -> str:
    """Rows as one HTML page: every token with its id, coloured by loss mask or, with `by_document`, by block.

    Text from data enters it through `html.escape` only, and the page's content policy forbids scripts and requests.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(heading)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(heading)}</h1><p>{html.escape(legend)}</p>",
    ]
    for row in rows:
        parts.append(f'<h2 dir="auto">{html.escape(row.title)}</h2>')
        parts += [f'<p dir="auto">{html.escape(fact)}</p>' for fact in row.facts]
        common = len(row.blocks) - row.alternatives
        blocks = [_block(block, i if by_document else None) for i, block in enumerate(row.blocks)]
        parts += blocks[:common]
        if row.alternatives:
            parts.append(f'<div class="side">{"".join(blocks[common:])}</div>')
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _block(block: ShownBlock, number: int | None) -> str:
    # the golden angle: neighbours are 137.5 degrees of hue apart, and no hue comes back soon
    style = "" if number is None else f' style="background: hsl({(210 + number * 137.5) % 360:g} 60% 50% / 20%)"'
    text = "".join(_piece(piece, number is None) for piece in block.pieces)
    return f'<section><h3>{html.escape(block.title)}</h3><div class="text" dir="auto"{style}>{text}</div></section>'


def _piece(piece: Piece, marked: bool) -> str:
    text = html.escape(printable(piece.text)).replace("\n", "<i>↵</i>\n")
    if not piece.ids:
        return f"<i>{text}</i>"
    ids = f"id {piece.ids[0]}" if len(piece.ids) == 1 else f"ids {', '.join(map(str, piece.ids))}"
    kind = (' class="l"' if piece.mark else ' class="n"') if marked else ""
    # in a right-to-left line the signs of a control token would be reordered
    direction = ' dir="ltr"' if re.fullmatch(r"<\|\w+\|>", piece.text) and len(piece.ids) == 1 else ""
    return f'<span title="{ids}"{kind}{direction}>{text}</span>'
