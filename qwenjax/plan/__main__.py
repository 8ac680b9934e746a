"""`python -m qwenjax.plan`: see command.py."""

import sys

from qwenjax.common import command_line
from qwenjax.plan import command

if __name__ == "__main__":
    sys.exit(command_line.main_of("qwenjax.plan", command))
