"""`python -m qwenjax.eval`: see command.py."""

import sys

from qwenjax.common import command_line
from qwenjax.eval import command

if __name__ == "__main__":
    sys.exit(command_line.main_of("qwenjax.eval", command))
