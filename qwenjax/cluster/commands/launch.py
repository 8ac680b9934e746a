"""Start the same command on all workers of a pod, in the background; it goes on when you log out.

The command works in ~/qwenjax on each VM, where gcs/ is the bucket and `python` the installed one; its words arrive
as they are, without expansion. Without --retry this returns once it is started. With --retry=N it stays: a preempted
slice is deleted, made anew and bootstrapped, and the same command started again, up to N times (training resumes by
itself); so it is when a worker was killed or its VM restarted. A command that fails by itself within an hour is
not repeated. Through GKE, the cluster itself does that.
"""

import argparse

from qwenjax.cluster import pod as pods
from qwenjax.common.command_line import DONE, Usage, natural

EXAMPLES = """
examples:
  python -m qwenjax.cluster launch --name=pod -- python -m qwenjax.train --exp=qwen14b --workdir=gcs/runs/qwen14b \\
      --set data.sources.0.shards=gcs/data/pretrain
  python -m qwenjax.cluster launch --name=pod --retry=20 -- python -m qwenjax.train --exp=qwen14b --workdir=gcs/run
  python -m qwenjax.cluster launch --name=pod -- env JAX_LOG_COMPILES=1 python -m qwenjax.train --exp=qwen14b
"""


def arguments(add) -> None:
    """Declares the options."""
    pods.arguments(add)
    add("--job", default="train", metavar="JOB", help="name of the job on the VMs (default: train)")
    add("--retry", type=natural, default=0, metavar="N", help="stay, and start again at most N times (default: 0)")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")


def run(options: argparse.Namespace) -> int:
    """Starts it; returns the job's exit code if it stayed to see it."""
    from qwenjax.cluster import supervise
    from qwenjax.cluster.runner import Runner

    command = options.command[options.command[:1] == ["--"] :]
    if not command:
        raise Usage("wanted a command after --, such as -- python -m qwenjax.train --exp=quickstart")
    pod = pods.pod(options)
    runner = Runner(options.dry_run)
    if options.retry and pod.through != "gke":
        runner.note("keep this running (in tmux, say); Ctrl-C stops watching, not the job. Logs: qwenjax.cluster logs")
    code = supervise.launch(pod, options.job, command, options.retry, runner)
    if code == DONE and not options.retry:
        runner.note(f"next: python -m qwenjax.cluster logs --name={pod.name} --job={options.job} --follow")
    return code
