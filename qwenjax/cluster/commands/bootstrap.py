"""Install qwenjax on every VM of a pod, and mount its bucket as gcs/. Through GKE: build and push the container.

What is installed is this checkout as committed, with its pinned dependencies, unless --source names another checkout
or something pip installs. It may be repeated, though not while a job runs, and must be
after a VM was restarted: the mount is gone then.
"""

import argparse

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE

EXAMPLES = """
examples:
  python -m qwenjax.cluster bootstrap --name=pod
  python -m qwenjax.cluster bootstrap --name=pod --bucket=my-bucket --dry-run
  python -m qwenjax.cluster bootstrap --name=pod --source='qwenjax[tpu,vocab] @ git+https://github.com/OWNER/qwenjax@main'
"""


def arguments(add) -> None:
    """Declares the options."""
    pods.arguments(add)


def run(options: argparse.Namespace) -> int:
    """Runs bootstrap_vm.sh on all workers."""
    from qwenjax.cluster import supervise
    from qwenjax.cluster.runner import Runner

    pod = pods.pod(options)
    runner = Runner(options.dry_run)
    supervise.bootstrap(pod, runner)
    if not options.dry_run:
        pods.remember(pod)  # --bucket and --source given here hold for what `launch --retry` makes anew
    return DONE
