"""`python -m qwenjax.chat`: see command.py."""

import sys

from qwenjax.chat import command
from qwenjax.common import command_line

if __name__ == "__main__":
    sys.exit(command_line.main_of("qwenjax.chat", command))
