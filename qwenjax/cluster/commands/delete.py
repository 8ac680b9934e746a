"""Delete a pod: its slices and its request, or its GKE cluster. What is on its disks is lost, buckets stay.

Asks for the name to be typed, unless --yes. Then lists what is left in the project.
"""

import argparse
import sys

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE, FAILED

EXAMPLES = """
examples:
  python -m qwenjax.cluster delete --name=pod
  python -m qwenjax.cluster delete --name=pod --yes
"""


def arguments(add) -> None:
    """Declares the options."""
    pods.arguments(add)
    add("--yes", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    """Deletes, forgets, lists."""
    from qwenjax.cluster import gcloud, xpk
    from qwenjax.cluster.runner import CommandFailed, Runner

    pod = pods.pod(options)
    runner = Runner(options.dry_run)
    if not (options.yes or options.dry_run):
        print(f"This deletes {pod.slices} x {pod.type} {pod.name!r} in {pod.project}, {pod.zone}, and its disks.")
        print("Type its name to go on: ", end="", flush=True)
        if sys.stdin.readline().strip() != pod.name:
            print("error: that is not its name; nothing was deleted", file=sys.stderr)
            return FAILED
    try:
        runner.insist(xpk.delete(pod) if pod.through == "gke" else gcloud.delete(pod))
    except CommandFailed as error:
        if error.kind != "absent":
            raise
        runner.note(f"{pod.name} was deleted already")
    if not options.dry_run:
        pods.forget(pod.name)
    runner.note("what is left in the project, and costs:")
    for command in (*gcloud.listing(pod.project), xpk.listing(pod.project)):
        runner.run(command)
    return DONE
