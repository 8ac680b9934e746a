"""Commands of the data room: text to token shards, and what a training step reads.

examples:
  python -m qwenjax.data tokenize books/ web.jsonl.gz --out=shards --tokenizer=qwen
  python -m qwenjax.data show --exp=quickstart --step=100
"""

import sys

from qwenjax import cli
from qwenjax.data.commands import publish, show, stats, tokenize


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.data COMMAND …`; returns its exit code."""
    commands = {"tokenize": tokenize, "stats": stats, "show": show, "publish": publish}
    return cli.main("qwenjax.data", __doc__, commands, argv)


if __name__ == "__main__":
    sys.exit(main())
