"""`python -m qwenjax.eval`: see command.py."""

import sys

from qwenjax import cli
from qwenjax.eval import command

if __name__ == "__main__":
    sys.exit(cli.main_of("qwenjax.eval", command))
