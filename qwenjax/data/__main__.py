"""Data commands: text to token shards, chat data to one schema, and a look at either.

examples:
  python -m qwenjax.data tokenize books/ web.jsonl.gz --out=shards --tokenizer=qwen
  python -m qwenjax.data stats shards
  python -m qwenjax.data convert sharegpt.json --out=chat.jsonl
  python -m qwenjax.data show chat.jsonl
  python -m qwenjax.data show --exp=quickstart --step=100
"""

import sys

from qwenjax.common import command_line
from qwenjax.data.commands import convert, publish, show, stats, tokenize


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.data COMMAND …`; returns its exit code."""
    commands = {"tokenize": tokenize, "stats": stats, "convert": convert, "show": show, "publish": publish}
    return command_line.main("qwenjax.data", __doc__, commands, argv)


if __name__ == "__main__":
    sys.exit(main())
