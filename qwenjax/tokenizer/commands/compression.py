"""Figure 3 of the report: how many tokens vocabularies make of a language, relative to one of them.

Fewer is better. TOKENIZER is qwen, a .tiktoken file, a sentencepiece model, a tokenizer.json, a GGUF file (only its
vocabulary is read) or a folder with a vocabulary of ours; NAME=TOKENIZER calls it NAME. What a file is shows in its
content. The languages are the report's, in its order: th he ar ko vi zh ja tr id pl ru nl pt it de es fr en and code.

TEXT is a folder with an entry per language, named by its code (th.txt, zh.jsonl, code/), or a .jsonl(.gz) file with
"text" and its language ("bcp47", "iso6393" or "language") in each line, as the UDHR in one file. Code is the Python
standard library where the text has none.
"""

import argparse

from qwenjax.common.command_line import DONE, Usage, positive

EXAMPLES = """
examples:
  python -m qwenjax.tokenizer compression qwen LLaMA=llama.gguf --base=XLM-R=sentencepiece.bpe.model \\
      --text=udhr.jsonl.gz --out=compression.png
  python -m qwenjax.tokenizer compression mine.tiktoken --base=qwen --text=texts/ --json > compression.json

--base is the line at 1.0 and no bar; without it, the first TOKENIZER is. The report's base is XLM-R. The tables are
printed as Markdown: relative tokens, then bytes per token.
"""


def arguments(add) -> None:
    """Declares the options."""
    add("tokenizer", nargs="+", metavar="TOKENIZER", help="what to compare")
    add("--text", metavar="TEXT", help="folder or .jsonl file, see above")
    add("--base", metavar="TOKENIZER", help="what to compare with (default: the first TOKENIZER)")
    add("--out", metavar="FILE.png", help="draw the figure here, too")
    add("--limit", type=positive, default=8 << 20, metavar="BYTES", help="of each language at most (default: 8 MB)")
    add("--json", action="store_true", help="print numbers for machines instead of tables")


def run(options: argparse.Namespace) -> int:
    """Counts, prints and draws."""
    if not options.text:
        raise Usage(
            "compression needs --text: a folder with a file per language, named by its code (en.txt, zh.jsonl, code/), "
            'or a .jsonl(.gz) file whose lines have "text" and "bcp47"'
        )
    if options.out and not options.out.endswith(".png"):
        raise Usage(f"--out={options.out}: the figure is a .png file")
    from qwenjax.tokenizer.vocabulary import compression

    specs = [*([options.base] if options.base else []), *options.tokenizer]
    compared = compression.compare(specs, options.text, options.limit)
    print(compression.as_json(compared) if options.json else compression.as_text(compared))
    if options.out:
        from qwenjax.tokenizer.vocabulary import figure

        figure.draw(compared, options.out)
    return DONE
