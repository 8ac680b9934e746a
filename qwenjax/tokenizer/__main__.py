"""Tokenizer commands: train, extend and compare vocabularies.

examples:
  python -m qwenjax.tokenizer train books/ web.jsonl.gz --out=books.model --size=8192
  python -m qwenjax.tokenizer extend --vocab=qwen --words=words.tsv --out=extra.tiktoken
  python -m qwenjax.tokenizer compression qwen books.model --text=texts/ --out=compression.png
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qwenjax.common import command_line
from qwenjax.common.command_line import DONE, Usage, positive
from qwenjax.common.figures import aligned, canvas, save
from qwenjax.sources.arguments import reading_arguments, sources

if TYPE_CHECKING:
    from qwenjax.tokenizer.vocabulary.compression import Comparison


class Train:
    """A vocabulary from text: sentencepiece, or byte-level BPE that can continue another vocabulary.

    TEXT is whatever `qwenjax.data tokenize` reads: files, folders of text and code, tfds:… and hf:…, or python-stdlib.

      bpe      sentencepiece with merges; keeps any text unchanged, unknown characters as bytes. For small vocabularies
      unigram  sentencepiece, pruned by likelihood; also lossless, but thirty times slower to train
      bytes    merges of bytes within the words of Qwen's split pattern, written as .tiktoken ranks with the 208 control
               tokens after them. --continue-from keeps the order of that vocabulary, as Qwen did with cl100k, and
               its extra tokens, but no tokens of several digits, because the pattern splits numbers into digits
    """

    EXAMPLES = """
examples:
  python -m qwenjax.tokenizer train python-stdlib --out=stdlib.model --size=8192
  python -m qwenjax.tokenizer train books/ --out=books.model --size=16000 --kind=unigram
  python -m qwenjax.tokenizer train web-*.jsonl.gz --out=mine.tiktoken --size=32000 --kind=bytes
  python -m qwenjax.tokenizer train zh/ --out=zh.tiktoken --size=151851 --kind=bytes --continue-from=cl100k.tiktoken
      as in the report: cl100k_base without its numbers, and 52,487 merges learned after it

Use the result as --tokenizer=mine.tiktoken, or as qwenjax.load_tokenizer("mine.tiktoken").
"""

    def arguments(self, add) -> None:
        add("text", nargs="+", metavar="TEXT", help="texts to read")
        add("--out", required=True, metavar="FILE", help="file to write: .model, or .tiktoken for --kind=bytes")
        add("--size", required=True, type=positive, metavar="N", help="number of ids, control tokens included")
        add("--kind", choices=["bpe", "unigram", "bytes"], default="bpe", help="see above (default: bpe)")
        add(
            "--continue-from",
            metavar="VOCAB",
            help="for --kind=bytes: qwen, a .tiktoken file or its folder",
        )
        reading_arguments(add)

    def run(self, options: argparse.Namespace) -> int:
        from qwenjax.sources.documents import Report
        from qwenjax.tokenizer.vocabulary import train

        report = Report()
        texts, base = sources(options), options.continue_from
        tokenizer, lines = train(texts, options.out, options.size, options.kind, base, report)
        print(*report.lines(), *lines, sep="\n", end="\n" * bool(report or lines))
        print(f"{options.out}: {tokenizer.name}, {tokenizer.size:,} ids, fingerprint {tokenizer.fingerprint[:12]}…")
        return DONE


class Extend:
    """New tokens for words that a vocabulary cuts into pieces, after its existing tokens.

    FILE has a line per word: the word, a tab, and its frequency in your texts. Words that the split pattern cuts, or
    that are already tokens, are skipped and counted. For the others merges are learned until each word is one token;
    this also adds tokens for parts of words. No existing id changes: the new ones follow, from 151851 for the published
    vocabulary. A model needs embedding rows for them, and training before they mean anything.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.tokenizer extend --vocab=qwen --words=words.tsv --out=extra.tiktoken

Use the result with qwenjax.load_tokenizer("qwen", extra="extra.tiktoken"), or put extra.tiktoken into the folder of a
qwen.tiktoken and give the folder, for example to qwenjax.data tokenize --tokenizer=FOLDER.
"""

    def arguments(self, add) -> None:
        add("--vocab", default="qwen", metavar="NAME", help="qwen, a .tiktoken file, or a folder (default: qwen)")
        add("--words", required=True, metavar="FILE", help="lines of WORD<TAB>FREQUENCY")
        add("--out", required=True, metavar="FILE", help="the .tiktoken file of extra tokens to write")

    def run(self, options: argparse.Namespace) -> int:
        from qwenjax.tokenizer.vocabulary import extend

        print(*extend(options.vocab, options.words, options.out), sep="\n")
        return DONE


class Compression:
    """Tokens per language by vocabulary, relative to one of them (Figure 3 of the report).

    Fewer tokens are better. TOKENIZER is qwen, a .tiktoken file, a sentencepiece model, a tokenizer.json, a GGUF file
    or a folder with a tokenizer; NAME=TOKENIZER names it. The content of a file, not its name, tells what it is. The
    languages are the report's, in its order: th he ar ko vi zh ja tr id pl ru nl pt it de es fr en and code.

    TEXT is a folder with an entry per language, named by its code (th.txt, zh.jsonl, code/), or a .jsonl(.gz) file with
    "text" and its language ("bcp47", "iso6393" or "language") in each line, such as the UDHR in one file. Without code
    in TEXT, the Python standard library is used.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.tokenizer compression qwen LLaMA=llama.gguf --base=XLM-R=sentencepiece.bpe.model \\
      --text=udhr.jsonl.gz --out=compression.png
  python -m qwenjax.tokenizer compression mine.tiktoken --base=qwen --text=texts/ --json > compression.json

The base is the line at 1.0 and has no bar; without --base it is the first TOKENIZER. The report's base is XLM-R. The
tables are printed as Markdown: relative tokens, then bytes per token.
"""

    def arguments(self, add) -> None:
        add("tokenizer", nargs="+", metavar="TOKENIZER", help="vocabularies to compare")
        add("--text", metavar="TEXT", help="folder or .jsonl file, see above")
        add("--base", metavar="TOKENIZER", help="the base of the comparison (default: the first TOKENIZER)")
        add("--out", metavar="FILE.png", help="also draw the figure into this file")
        add("--limit", type=positive, default=8 << 20, metavar="BYTES", help="of text per language (default: 8 MB)")
        add("--json", action="store_true", help="print JSON instead of tables")

    def run(self, options: argparse.Namespace) -> int:
        if not options.text:
            raise Usage(
                "compression needs --text: a folder with a file per language, named by its code (en.txt, code/), "
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
    ratios = [[row.relative(v) for v in range(1, len(names))] for row in compared.languages]
    means = map(statistics.geometric_mean, zip(*ratios))
    relative = [("language", "bytes", *names[1:])]
    relative += [(r.code, f"{r.bytes:,}", *(f"{x:.2f}" for x in own)) for r, own in zip(compared.languages, ratios)]
    relative += [("geometric mean", "", *(f"{mean:.2f}" for mean in means))]
    density = [("language", *names)]
    density += [(row.code, *(f"{row.bytes / n:.2f}" for n in row.tokens)) for row in compared.languages]
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
    base, *names = [vocabulary.name.replace("$", r"\$") for vocabulary in compared.vocabularies]  # no mathematics
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


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.tokenizer COMMAND …`; returns its exit code."""
    commands = {command.__name__.lower(): command() for command in (Train, Extend, Compression)}
    return command_line.main("qwenjax.tokenizer", __doc__, commands, argv)


if __name__ == "__main__":
    sys.exit(main())
