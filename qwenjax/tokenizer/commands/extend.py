"""New tokens for words that a vocabulary cuts into pieces, behind the tokens it has.

FILE has a line per word: the word, a tab, and its frequency in the text you care about. Words are brought to NFC.
Those that the split pattern cuts in two, or that are tokens already, are left out and counted. For the others merges
are learned, most frequent pair first, until each is one token; that needs tokens for parts of words, too.

The ids follow those of the control tokens, 151851 for the published vocabulary, so nothing that exists changes. A
model needs embedding rows for them, and training before they mean anything.
"""

import argparse

from qwenjax.common.command_line import DONE

EXAMPLES = """
examples:
  python -m qwenjax.tokenizer extend --vocab=qwen --words=words.tsv --out=extra.tiktoken

Use: qwenjax.load_tokenizer("qwen", extra="extra.tiktoken"); or put it as extra.tiktoken beside a qwen.tiktoken, and
give the folder, e.g. to qwenjax.data tokenize --tokenizer=FOLDER.
"""


def arguments(add) -> None:
    """Declares the options."""
    add("--vocab", default="qwen", metavar="NAME", help="qwen, a .tiktoken file, or a folder (default: qwen)")
    add("--words", required=True, metavar="FILE", help="lines of WORD<TAB>FREQUENCY")
    add("--out", required=True, metavar="FILE", help="the .tiktoken file of extra tokens to write")


def run(options: argparse.Namespace) -> int:
    """Learns and writes; prints what was left out and the new tokens."""
    from qwenjax.tokenizer.vocabulary import extend

    for line in extend.extend(options.vocab, options.words, options.out):
        print(line)
    return DONE
