"""Stop a job on all workers: training saves first. The slice stays, and is billed, until `delete`."""

import argparse

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE, natural

EXAMPLES = """
examples:
  python -m qwenjax.cluster stop --name=pod
  python -m qwenjax.cluster stop --name=pod --grace=600
"""


def arguments(add) -> None:
    """Declares the options."""
    pods.arguments(add)
    add("--job", default="train", metavar="JOB", help="name of the job (default: train)")
    add("--grace", type=natural, default=300, metavar="SECONDS", help="before it is killed (default: 300)")


def run(options: argparse.Namespace) -> int:
    """Sends SIGTERM everywhere, and SIGKILL to what is left after the grace."""
    from qwenjax.cluster import gcloud, xpk
    from qwenjax.cluster.runner import Runner

    pod = pods.pod(options)
    pods.check_name("--job", options.job)
    runner = Runner(options.dry_run)
    if pod.through == "gke":
        runner.run(xpk.stop(pod, options.job))
    else:
        runner.run(gcloud.worker(pod, "stop", f"--job={options.job}", f"--grace={options.grace}"))
    runner.note(f"{pod.name} still costs {pod.chips:,} chip-hours an hour: python -m qwenjax.cluster delete")
    return DONE
