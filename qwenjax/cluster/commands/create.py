"""Create TPU slices, and wait until they are there. They are billed until `delete`.

Through a queue (the default) the request waits for its turn, however long; --through=vm asks for one slice at once;
--through=gke makes a GKE cluster with XPK. On-demand unless --spot or --reserved. Existing ones are left alone, so
the same command may be run again. Names of types count chips (v5e, v6e) or TensorCores, two a chip (v4, v5p, tpu7x).
"""

import argparse

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE

EXAMPLES = """
examples:
  python -m qwenjax.cluster create --name=pod --project=ID --zone=us-west4-a --type=v5e-256 --spot --bucket=my-bucket
  python -m qwenjax.cluster create --name=pod --project=ID --zone=us-east5-a --type=v5p-256 --slices=2 --dry-run
  python -m qwenjax.cluster create --name=try --project=ID --zone=us-west4-a --type=v5e-8 --through=vm
  python -m qwenjax.cluster create --name=pod --project=ID --zone=us-east5-b --type=v6e-256 --through=gke \\
      --image=us-east5-docker.pkg.dev/ID/images/qwenjax:1 --bucket=my-bucket
"""


def arguments(add) -> None:
    """Declares the options."""
    pods.arguments(add, creating=True)


def run(options: argparse.Namespace) -> int:
    """Creates, waits, and says what comes next."""
    from qwenjax.cluster import supervise
    from qwenjax.cluster.runner import Runner

    pod = pods.pod(options, fresh=True)
    runner = Runner(options.dry_run)
    runner.note(
        f"{pod.slices} x {pod.type}: {pod.chips:,} chips, {pod.tpu.workers * pod.slices} VMs, {pod.capacity}; "
        f"an hour costs {pod.chips:,} chip-hours, a day {24 * pod.chips:,}, whether anything runs or not"
    )
    supervise.create(pod, runner)
    runner.note(f"next: python -m qwenjax.cluster bootstrap --name={pod.name}; and `delete` it when you are done")
    return DONE
