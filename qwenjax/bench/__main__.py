"""Speed, as ratios to others taken in one run; and whole experiments of alignment, with their claims.

examples:
  python -m qwenjax.bench train
  python -m qwenjax.bench train --against=torch
  python -m qwenjax.bench data
  python -m qwenjax.bench decode --model=SmolLM2.gguf --against=transformers
  python -m qwenjax.bench align --data=ratings.jsonl.gz
"""

import sys

from qwenjax.bench.commands import align, data, decode, train
from qwenjax.common import command_line


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.bench COMMAND …`; returns its exit code."""
    return command_line.main(
        "qwenjax.bench", __doc__, {"train": train, "data": data, "decode": decode, "align": align}, argv
    )


if __name__ == "__main__":
    sys.exit(main())
