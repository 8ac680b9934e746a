"""New tokens for words that a vocabulary cuts into pieces, after its existing tokens.

FILE has a line per word: the word, a tab, and its frequency in your texts. Words are brought to NFC. Words that the
split pattern cuts in two, or that are already tokens, are skipped and counted. For the others merges are learned, most
frequent pair first, until each word is one token; this also adds tokens for parts of words.

The new ids follow those of the control tokens, from 151851 for the published vocabulary, so no existing id changes. A
model needs embedding rows for them, and training before they mean anything.
"""

import argparse

from qwenjax.common.command_line import DONE

EXAMPLES = """
examples:
  python -m qwenjax.tokenizer extend --vocab=qwen --words=words.tsv --out=extra.tiktoken

Use the result with qwenjax.load_tokenizer("qwen", extra="extra.tiktoken"), or put extra.tiktoken into the folder of a
qwen.tiktoken and give the folder, for example to qwenjax.data tokenize --tokenizer=FOLDER.
"""


def arguments(add) -> None:
    """Declares the options."""
    add("--vocab", default="qwen", metavar="NAME", help="qwen, a .tiktoken file, or a folder (default: qwen)")
    add("--words", required=True, metavar="FILE", help="lines of WORD<TAB>FREQUENCY")
    add("--out", required=True, metavar="FILE", help="the .tiktoken file of extra tokens to write")


def run(options: argparse.Namespace) -> int:
    """Learns and writes; prints what was skipped and the new tokens."""
    from qwenjax.tokenizer.vocabulary import extend

    for line in extend(options.vocab, options.words, options.out):
        print(line)
    return DONE
