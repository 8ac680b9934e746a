"""`python -m qwenjax.convert`: see command.py."""

import sys

from qwenjax import cli
from qwenjax.convert import command

if __name__ == "__main__":
    sys.exit(cli.main_of("qwenjax.convert", command))
