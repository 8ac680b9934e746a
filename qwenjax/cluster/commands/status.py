"""What exists in a project, in every zone, and costs money; and how a job stands on each worker of a pod.

Without --name it needs --project alone, and is the check that nothing is left running.
"""

import argparse

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE, Usage

EXAMPLES = """
examples:
  python -m qwenjax.cluster status --project=ID
  python -m qwenjax.cluster status --name=pod
"""


def arguments(add) -> None:
    """Declares the options."""
    add("--project", metavar="ID", help="list all TPUs, requests and clusters of this project")
    add("--name", metavar="NAME", help="of a pod created from here: also how its job stands")
    add("--job", default="train", metavar="JOB", help="name of the job (default: train)")
    add("--dry-run", action="store_true", help="print the exact commands, run none")


def run(options: argparse.Namespace) -> int:
    """Lists."""
    from qwenjax.cluster import gcloud, xpk
    from qwenjax.cluster.runner import Runner

    runner = Runner(options.dry_run)
    pod = _pod(options.name) if options.name else None
    project = options.project or (pod and pod.project)
    if not project:
        raise Usage("wanted --project=ID, or --name of a pod created from here")
    runner.note("requests, slices and clusters; empty lists cost nothing:")
    for command in (*gcloud.listing(project), xpk.listing(project)):
        runner.run(command)
    if pod and pod.through == "gke":
        runner.run(xpk.workloads(pod))
    elif pod:
        runner.run(gcloud.worker(pod, "status", f"--job={options.job}"))
    return DONE


def _pod(name: str) -> pods.Pod:
    known = pods.known_as(name)
    if known is None:
        raise Usage(f"no pod {name!r} was created from here; give --project=ID alone")
    return known
