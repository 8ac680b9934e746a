"""Report what a captured trace says: step times, time by kind of op and part of the model, memory, input wait.

DIR is a run, its profile folder, or one trace (*.xplane.pb); of several recordings the newest is read, with the traces
of all its hosts. Where several ops of a device run at once, on the threads of a CPU or the streams of a GPU, they share
the time equally, so that shares add up to 100 %. Times are means over devices and complete steps.
Reading a trace needs xprof: pip install 'qwenjax[profile]'
"""

import argparse
import json
import sys
from dataclasses import asdict

from qwenjax.common import command_line
from qwenjax.common.command_line import DONE, natural
from qwenjax.common.processes import quiet_logs

EXAMPLES = """
examples:
  python -m qwenjax.train --exp=quickstart --profile=10:15
  python -m qwenjax.profile runs/quickstart --top=30
      the first command records steps 11 to 15, the second says where their time went
"""


def arguments(add) -> None:
    """Declares the options."""
    add("dir", metavar="DIR", help="a run, its profile folder, or a trace")
    add("--top", type=natural, default=8, metavar="N", help="how many ops to list (default: 8)")
    add("--json", action="store_true", help="print JSON, times in seconds")


def run(options: argparse.Namespace) -> int:
    """Prints the summary of the newest recording."""
    quiet_logs(3)  # xprof logs every call
    from qwenjax.profile.report import report
    from qwenjax.profile.summary import summarize

    summary = summarize(options.dir)
    print(json.dumps(asdict(summary), indent=2) if options.json else report(summary, options.top))
    return DONE


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.profile …`; returns its exit code."""
    return command_line.main_of("qwenjax.profile", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
