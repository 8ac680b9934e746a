"""Fetch a trace that training recorded, or attach to a running one.

`launch … -- python -m qwenjax.train … --profile=10:15` records steps 11 to 15 into WORKDIR/profile; --trace fetches
that folder from worker 0, or from the bucket through GKE. --port makes the live profiler's port of worker 0 one of
this machine, for xprof to connect to, until Ctrl-C.
"""

import argparse

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE, Usage, positive

EXAMPLES = """
examples:
  python -m qwenjax.cluster profile --name=pod --trace=gcs/runs/qwen14b/profile --out=trace
  python -m qwenjax.profile trace
  python -m qwenjax.cluster profile --name=pod --port=9012
"""


def arguments(add) -> None:
    """Declares the options."""
    pods.arguments(add)
    add("--trace", metavar="DIR", help="folder of the trace, as seen by the run")
    add("--out", default="profile", metavar="DIR", help="where to put it here (default: profile)")
    add("--port", type=positive, metavar="PORT", help="that the run's profiler listens on")
    add("--job", default="train", metavar="JOB", help="name of the job, for --port through GKE (default: train)")


def run(options: argparse.Namespace) -> int:
    """Copies, or tunnels."""
    from qwenjax.cluster import gcloud, xpk
    from qwenjax.cluster.runner import Runner

    if bool(options.trace) == bool(options.port):
        raise Usage("wanted either --trace=DIR or --port=PORT")
    pod = pods.pod(options)
    runner = Runner(options.dry_run)
    if options.port and pod.through == "gke":
        runner.run(xpk.credentials(pod))
        runner.run(xpk.tunnel(options.job, options.port))
    elif options.port:
        runner.run(gcloud.tunnel(pod, options.port))
    else:
        if pod.through == "gke":
            runner.run(xpk.trace(pod, options.trace, options.out))
        else:
            folder = options.trace if options.trace.startswith("/") else f"{gcloud.HOME}/{options.trace}"
            runner.run(gcloud.copy_from(pod, folder, options.out))
        runner.note(f"next: python -m qwenjax.profile {options.out}")
    return DONE
