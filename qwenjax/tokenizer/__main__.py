"""Tokenizer commands: train, extend and compare vocabularies.

examples:
  python -m qwenjax.tokenizer train books/ web.jsonl.gz --out=books.model --size=8192
  python -m qwenjax.tokenizer extend --vocab=qwen --words=words.tsv --out=extra.tiktoken
  python -m qwenjax.tokenizer compression qwen books.model --text=texts/ --out=compression.png
"""

import sys

from qwenjax.common import command_line
from qwenjax.tokenizer.commands import compression, extend, train


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.tokenizer COMMAND …`; returns its exit code."""
    commands = {"train": train, "extend": extend, "compression": compression}
    return command_line.main("qwenjax.tokenizer", __doc__, commands, argv)


if __name__ == "__main__":
    sys.exit(main())
