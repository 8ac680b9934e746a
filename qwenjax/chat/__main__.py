"""`python -m qwenjax.chat`: see command.py."""

import sys

from qwenjax import cli
from qwenjax.chat import command

if __name__ == "__main__":
    sys.exit(cli.main_of("qwenjax.chat", command))
