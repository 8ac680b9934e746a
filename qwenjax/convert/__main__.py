"""`python -m qwenjax.convert`: see command.py."""

import sys

from qwenjax.common import command_line
from qwenjax.convert import command

if __name__ == "__main__":
    sys.exit(command_line.main_of("qwenjax.convert", command))
