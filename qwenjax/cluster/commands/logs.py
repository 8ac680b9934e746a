"""Print the log of a job: of worker 0, or of all. With --follow until the job ends."""

import argparse

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE, natural

EXAMPLES = """
examples:
  python -m qwenjax.cluster logs --name=pod --follow
  python -m qwenjax.cluster logs --name=pod --workers=all --lines=20
"""


def arguments(add) -> None:
    """Declares the options."""
    pods.arguments(add)
    add("--job", default="train", metavar="JOB", help="name of the job (default: train)")
    add("--workers", choices=("0", "all"), default="0", help="of which VMs (default: 0)")
    add("--lines", type=natural, default=100, metavar="N", help="how many of the last lines (default: 100)")
    add("--follow", action="store_true", help="go on with those to come")


def run(options: argparse.Namespace) -> int:
    """Prints."""
    from qwenjax.cluster import gcloud, xpk
    from qwenjax.cluster.runner import Runner

    pod = pods.pod(options)
    pods.check_name("--job", options.job)
    runner = Runner(options.dry_run)
    if pod.through == "gke":
        runner.run(xpk.credentials(pod))
        runner.run(xpk.logs(pod, options.job, options.workers, options.lines, options.follow))
        return DONE
    words = [f"--job={options.job}", f"--lines={options.lines}"]
    words += ["--follow"] * options.follow + ["--prefix"] * (options.workers == "all")
    runner.run(gcloud.worker(pod, "log", *words, workers=options.workers))
    return DONE
