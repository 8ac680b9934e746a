"""Rows as one HTML page that needs nothing else: every token with its id, coloured by loss mask or by document.

Text from data enters the page through `html.escape` only, and the page's content policy forbids scripts and requests.
"""

import html
import re
from collections.abc import Iterable

from qwenjax.data.inspect.show import Piece, ShownBlock, ShownRow, printable

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1f2328; --dim: #656d76; --line: #d0d7de; --loss: #b4ecc4;
  --grey: #eef0f2; --hues: 91%; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --dim: #8d96a0; --line: #30363d;
  --loss: #1b5e34; --grey: #1c2128; --hues: 17%; } }
body { background: var(--back); color: var(--text); margin: 1.5rem auto; padding: 0 1rem; max-width: 100rem;
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2.2rem 0 .2rem; overflow-wrap: anywhere; }
p { color: var(--dim); margin: .1rem 0; overflow-wrap: anywhere; }
section { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; overflow: hidden; }
h3 { font-size: .8rem; font-weight: 600; color: var(--dim); margin: 0; padding: .25rem .6rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.text { padding: .5rem .6rem; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: .5rem; align-items: start; }
.side section { margin: 0; }
span { border-radius: 2px; box-shadow: inset 1px 0 var(--line); }
span.n { background: var(--grey); } span.l { background: var(--loss); }
span:hover { outline: 2px solid #f78166; }
i { color: var(--dim); font-style: normal; user-select: none; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(heading: str, legend: str, rows: Iterable[ShownRow], by_document: bool = False) -> str:
    """The page of rows.

    Args:
      by_document: a colour for each block, instead of one colour for what carries loss.
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
    style = "" if number is None else f' style="background: hsl({(210 + number * 137.5) % 360:g} 55% var(--hues))"'
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
