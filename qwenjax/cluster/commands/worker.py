"""What the other commands call on each VM: start a command in the background, say how it stands, stop it, its log."""

import argparse

from qwenjax.common.command_line import DONE, FAILED, Usage, natural

EXAMPLES = """
examples:
  python -m qwenjax.cluster worker --job=train start -- python -m qwenjax.train --exp=qwen14b
  python -m qwenjax.cluster worker --job=train status
  python -m qwenjax.cluster worker --job=train --follow log
  python -m qwenjax.cluster worker --job=train stop
"""


def arguments(add) -> None:
    """Declares the options."""
    add("--job", default="train", metavar="JOB", help="name of the job (default: train)")
    add("--lines", type=natural, default=100, metavar="N", help="log: how many of the last lines (default: 100)")
    add("--follow", action="store_true", help="log: go on until the job ends")
    add("--prefix", action="store_true", help="log: the host's name before each line")
    add("--grace", type=natural, default=120, metavar="SECONDS", help="stop: before it is killed (default: 120)")
    # One argument for both: argparse gives the -- between two to the first, and would take another -- from the command.
    add("words", nargs=argparse.REMAINDER, metavar="VERB", help="status, log, stop, or start -- COMMAND…")


def run(options: argparse.Namespace) -> int:
    """Does it, on this machine."""
    from qwenjax.cluster import worker

    match options.words:
        case ["start", "--", _, *_]:
            print(worker.start(options.job, options.words[2:]))
            return DONE
        case ["status" | "log" | "stop" as verb]:
            pass
        case _:
            raise Usage("wanted status, log, stop, or start -- COMMAND…")
    if verb == "log":
        worker.show_log(options.job, options.lines, options.follow, options.prefix)
    else:
        state = worker.stop(options.job, options.grace) if verb == "stop" else worker.state(options.job)
        print(worker.show_state(state))
        return FAILED if verb == "stop" and state.state == worker.RUNNING else DONE
    return DONE
