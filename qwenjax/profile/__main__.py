"""`python -m qwenjax.profile`: see command.py."""

import sys

from qwenjax import cli
from qwenjax.profile import command


def main(argv: list[str] | None = None) -> int:
    """Prints the report; returns the exit code."""
    return cli.main_of("qwenjax.profile", command, argv)


if __name__ == "__main__":
    sys.exit(main())
