"""TPU slices: create, bootstrap, launch, watch, delete. Every command takes --dry-run: print what it would run.

examples:
  python -m qwenjax.cluster create --name=pod --project=ID --zone=us-west4-a --type=v5e-256 --spot --dry-run
  python -m qwenjax.cluster bootstrap --name=pod
  python -m qwenjax.cluster launch --name=pod --retry=20 -- python -m qwenjax.train --exp=qwen14b --workdir=gcs/qwen14b
  python -m qwenjax.cluster delete --name=pod

tpu_setup/README.md walks from nothing to a running qwen14b.
"""

import sys

from qwenjax.cluster import commands
from qwenjax.common import command_line


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.cluster COMMAND …`; returns its exit code."""
    return command_line.main("qwenjax.cluster", __doc__, commands.COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
