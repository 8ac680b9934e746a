"""Speed, and ratios to others taken in one run.

examples:
  python -m qwenjax.bench train
  python -m qwenjax.bench train --against=torch
  python -m qwenjax.bench data
  python -m qwenjax.bench decode --model=SmolLM2.gguf --against=transformers
"""

import sys

from qwenjax import cli
from qwenjax.bench.commands import data, decode, train


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.bench COMMAND …`; returns its exit code."""
    return cli.main("qwenjax.bench", __doc__, {"train": train, "data": data, "decode": decode}, argv)


if __name__ == "__main__":
    sys.exit(main())
