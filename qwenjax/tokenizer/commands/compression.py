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

from qwenjax.common.command_line import DONE, Usage, positive

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
    from qwenjax.tokenizer.vocabulary import compression, figure

    specs = [*([options.base] if options.base else []), *options.tokenizer]
    compared = compression.compare(specs, options.text, options.limit)
    print(figure.as_json(compared) if options.json else figure.as_text(compared))
    if options.out:
        figure.draw(compared, options.out)
    return DONE
