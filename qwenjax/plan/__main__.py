"""`python -m qwenjax.plan`: see command.py."""

import sys

from qwenjax import cli
from qwenjax.plan import command

if __name__ == "__main__":
    sys.exit(cli.main_of("qwenjax.plan", command))
