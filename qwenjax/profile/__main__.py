"""`python -m qwenjax.profile`: see command.py."""

import sys

from qwenjax.common import command_line
from qwenjax.profile import command


def main(argv: list[str] | None = None) -> int:
    """Prints the report; returns the exit code."""
    return command_line.main_of("qwenjax.profile", command, argv)


if __name__ == "__main__":
    sys.exit(main())
