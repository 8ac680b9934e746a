"""Tokens per language by vocabulary, relative to one of them (Figure 3 of the report).

Fewer tokens are better. TOKENIZER is qwen, a .tiktoken file, a sentencepiece model, a tokenizer.json, a GGUF file (only
its vocabulary is read) or a folder with a tokenizer; NAME=TOKENIZER gives it a name. The content of a file, not its
name, tells what it is. The languages are the report's, in its order: th he ar ko vi zh ja tr id pl ru nl pt it de es fr
en and code.

TEXT is a folder with an entry per language, named by its code (th.txt, zh.jsonl, code/), or a .jsonl(.gz) file with
"text" and its language ("bcp47", "iso6393" or "language") in each line, such as the UDHR in one file. Without code in
TEXT, the Python standard library is used.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from qwenjax.common.command_line import DONE, Usage, positive
from qwenjax.common.figures import aligned, canvas, save

if TYPE_CHECKING:
    from qwenjax.tokenizer.vocabulary.compression import Comparison

EXAMPLES = """
examples:
  python -m qwenjax.tokenizer compression qwen LLaMA=llama.gguf --base=XLM-R=sentencepiece.bpe.model \\
      --text=udhr.jsonl.gz --out=compression.png
  python -m qwenjax.tokenizer compression mine.tiktoken --base=qwen --text=texts/ --json > compression.json

The base is the line at 1.0 and has no bar; without --base it is the first TOKENIZER. The report's base is XLM-R. The
tables are printed as Markdown: relative tokens, then bytes per token.
"""


def arguments(add) -> None:
    """Declares the options."""
    add("tokenizer", nargs="+", metavar="TOKENIZER", help="vocabularies to compare")
    add("--text", metavar="TEXT", help="folder or .jsonl file, see above")
    add("--base", metavar="TOKENIZER", help="the base of the comparison (default: the first TOKENIZER)")
    add("--out", metavar="FILE.png", help="also draw the figure into this file")
    add("--limit", type=positive, default=8 << 20, metavar="BYTES", help="maximum text per language (default: 8 MB)")
    add("--json", action="store_true", help="print JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    """Counts, prints and draws."""
    if not options.text:
        raise Usage(
            "compression needs --text: a folder with a file per language, named by its code (en.txt, zh.jsonl, code/), "
            'or a .jsonl(.gz) file whose lines have "text" and "bcp47"'
        )
    if options.out and not options.out.endswith(".png"):
        raise Usage(f"--out={options.out}: the figure is a .png file")
    from qwenjax.tokenizer.vocabulary.compression import compare

    specs = [*([options.base] if options.base else []), *options.tokenizer]
    compared = compare(specs, options.text, options.limit)
    print(as_json(compared) if options.json else as_text(compared))
    if options.out:
        draw(compared, Path(options.out))
    return DONE


def as_json(compared: "Comparison") -> str:
    """All numbers as JSON."""
    names = [vocabulary.name for vocabulary in compared.vocabularies]
    return json.dumps(
        {
            "base": names[0],
            "vocabularies": [{"name": v.name, "read_as": v.kind, "size": v.size} for v in compared.vocabularies],
            "languages": [
                {
                    "language": row.code,
                    "documents": row.documents,
                    "bytes": row.bytes,
                    "tokens": dict(zip(names, row.tokens)),
                    "relative": {name: round(row.relative(v), 4) for v, name in enumerate(names)},
                    "bytes_per_token": {name: round(row.bytes / n, 4) for name, n in zip(names, row.tokens)},
                }
                for row in compared.languages
            ],
            "notes": compared.notes,
        },
        ensure_ascii=False,
        indent=1,
    )


def as_text(compared: "Comparison") -> str:
    """The vocabularies, then two tables in Markdown."""
    names = [vocabulary.name for vocabulary in compared.vocabularies]
    logs = [[math.log(row.relative(v)) for row in compared.languages] for v in range(1, len(names))]
    relative = [
        ("language", "bytes", *names[1:]),
        *(
            (row.code, f"{row.bytes:,}", *(f"{row.relative(v):.2f}" for v in range(1, len(names))))
            for row in compared.languages
        ),
        ("geometric mean", "", *(f"{math.exp(sum(column) / len(column)):.2f}" for column in logs)),
    ]
    density = [
        ("language", *names),
        *((row.code, *(f"{row.bytes / n:.2f}" for n in row.tokens)) for row in compared.languages),
    ]
    lines = [*(f"{v.name}: {v.size:,} ids, {v.kind}" for v in compared.vocabularies), *compared.notes]
    for title, (head, *rows) in (
        (f"Tokens relative to {names[0]} (lower is better):", relative),
        ("Bytes per token (higher is better):", density),
    ):
        table = aligned([head, ("---", *["--:"] * (len(head) - 1)), *rows], gap=" | ")
        lines += ["", title, "", *(f"| {line} |" for line in table)]
    return "\n".join(lines)


def draw(compared: "Comparison", path: Path) -> None:
    """Writes a PNG: a group of bars per language, a bar per vocabulary; the base is the line at 1."""
    base, *names = [vocabulary.name for vocabulary in compared.vocabularies]
    figure, [axis] = canvas(max(8.0, 0.8 * len(compared.languages)), 5)
    width = 0.84 / max(len(names), 1)
    for v, name in enumerate(names):
        xs = [i + (v - (len(names) - 1) / 2) * width for i in range(len(compared.languages))]
        bars = axis.bar(xs, [row.relative(v + 1) for row in compared.languages], width, label=name)
        axis.bar_label(bars, fmt="%.2f", fontsize=6, rotation=90, padding=2)
    axis.axhline(1, color="black", linewidth=0.8, zorder=0)
    axis.set_ylabel(f"tokens relative to {base} (lower is better)")
    axis.set_xticks(range(len(compared.languages)), [row.code for row in compared.languages])
    if names:
        axis.legend(frameon=False, ncols=min(len(names), 6))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
