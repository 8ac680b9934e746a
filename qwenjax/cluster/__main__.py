"""TPU slices: create, bootstrap, launch, watch, delete. Every command takes --dry-run: print what it would run.

examples:
  python -m qwenjax.cluster create --name=pod --project=ID --zone=us-west4-a --type=v5e-256 --spot --dry-run
  python -m qwenjax.cluster bootstrap --name=pod
  python -m qwenjax.cluster launch --name=pod --retry=20 -- python -m qwenjax.train --exp=qwen14b --workdir=gcs/qwen14b
  python -m qwenjax.cluster delete --name=pod

tpu_setup/README.md walks from nothing to a running qwen14b.
"""

import argparse
import sys

from qwenjax.cluster import gcloud, supervise, xpk
from qwenjax.cluster import pod as pods
from qwenjax.cluster import worker as jobs
from qwenjax.cluster.pod import Pod
from qwenjax.cluster.runner import CommandFailed, Runner
from qwenjax.common import command_line
from qwenjax.common.command_line import DONE, FAILED, Usage, natural, positive


class Create:
    """Create TPU slices, and wait until they are there. They are billed until `delete`.

    Through a queue (the default) the request waits for its turn, however long; --through=vm asks for one slice at once;
    --through=gke makes a GKE cluster with XPK. Existing slices are left alone, so the same command may be run again.
    Names of types count chips (v5e, v6e) or TensorCores, two a chip (v4, v5p, tpu7x).
    """

    EXAMPLES = """
examples:
  python -m qwenjax.cluster create --name=pod --project=ID --zone=us-west4-a --type=v5e-256 --spot --bucket=my-bucket
  python -m qwenjax.cluster create --name=pod --project=ID --zone=us-east5-b --type=v6e-256 --through=gke \\
      --image=us-east5-docker.pkg.dev/ID/images/qwenjax:1 --bucket=my-bucket
"""

    def arguments(self, add) -> None:
        pods.arguments(add, creating=True)

    def run(self, options: argparse.Namespace) -> int:
        pod, runner = pods.pod_from(options, fresh=True), Runner(options.dry_run)
        runner.note(
            f"{pod.slices} x {pod.type}: {pod.chips:,} chips, {pod.workers} VMs, {pod.capacity}; "
            f"an hour costs {pod.chips:,} chip-hours, a day {24 * pod.chips:,}, whether anything runs or not"
        )
        supervise.create(pod, runner)
        runner.note(f"next: python -m qwenjax.cluster bootstrap --name={pod.name}; and `delete` it when you are done")
        return DONE


class Bootstrap:
    """Install qwenjax on every VM of a pod, and mount its bucket as gcs/. Through GKE: build and push the container.

    It installs this checkout as committed, with its pinned dependencies, unless --source names another checkout or
    something that pip installs, such as 'qwenjax[tpu,vocab] @ git+https://github.com/OWNER/qwenjax@main'. Run it again
    after a VM was restarted, because its mount is gone then; but not while a job runs.
    """

    EXAMPLES = "examples:\n  python -m qwenjax.cluster bootstrap --name=pod"

    def arguments(self, add) -> None:
        pods.arguments(add)

    def run(self, options: argparse.Namespace) -> int:
        pod = pods.pod_from(options)
        supervise.bootstrap(pod, Runner(options.dry_run))
        if not options.dry_run:
            pods.remember(pod)  # `launch --retry` needs --bucket and --source when it creates the pod again
        return DONE


class Launch:
    """Start the same command on all workers of a pod, in the background; it goes on when you log out.

    The command works in ~/qwenjax on each VM, where gcs/ is the bucket and `python` the installed one; its words arrive
    as they are, without expansion. With --retry=N this stays: a preempted slice is deleted, created again and
    bootstrapped, and the same command is started again, up to N times (training resumes by itself); also when a worker
    was killed or its VM restarted, but not if it fails by itself within an hour. Through GKE, the cluster does this.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.cluster launch --name=pod --retry=20 -- python -m qwenjax.train --exp=qwen14b --workdir=gcs/run
  python -m qwenjax.cluster launch --name=pod -- env JAX_LOG_COMPILES=1 python -m qwenjax.train --exp=qwen14b
"""

    def arguments(self, add) -> None:
        pods.arguments(add, job=True)
        add("--retry", type=natural, default=0, metavar="N", help="stay, and start again at most N times (default: 0)")
        add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")

    def run(self, options: argparse.Namespace) -> int:
        command = options.command[options.command[:1] == ["--"] :]
        if not command:
            raise Usage("wanted a command after --, such as -- python -m qwenjax.train --exp=quickstart")
        pod, runner = pods.pod_from(options), Runner(options.dry_run)
        if options.retry and pod.through != "gke":
            runner.note(
                "keep this running (in tmux, say); Ctrl-C stops watching, not the job. Logs: qwenjax.cluster logs"
            )
        code = supervise.launch(pod, options.job, command, options.retry, runner)
        if code == DONE and not options.retry:
            runner.note(f"next: python -m qwenjax.cluster logs --name={pod.name} --job={options.job} --follow")
        return code


class Logs:
    """Print the log of a job: of worker 0, or of all. With --follow until the job ends."""

    EXAMPLES = "examples:\n  python -m qwenjax.cluster logs --name=pod --follow"

    def arguments(self, add) -> None:
        pods.arguments(add, job=True)
        add("--workers", choices=("0", "all"), default="0", help="of which VMs (default: 0)")
        add("--lines", type=natural, default=100, metavar="N", help="how many of the last lines (default: 100)")
        add("--follow", action="store_true", help="go on with those to come")

    def run(self, options: argparse.Namespace) -> int:
        pod = pods.pod_from(options)
        commands = _tool(pod).logs(pod, options.job, options.workers, options.lines, options.follow)
        Runner(options.dry_run).run(*commands)
        return DONE


class Status:
    """What exists in a project, in every zone, and costs money; with --name, how a job stands on each worker."""

    EXAMPLES = "examples:\n  python -m qwenjax.cluster status --project=ID --name=pod"

    def arguments(self, add) -> None:
        add("--project", metavar="ID", help="list all TPUs, requests and clusters of this project")
        add("--name", metavar="NAME", help="of a pod created from here: also how its job stands")
        add("--job", default="train", metavar="JOB", help="name of the job (default: train)")
        add("--dry-run", action="store_true", help="print the exact commands, run none")

    def run(self, options: argparse.Namespace) -> int:
        pod = pods.known_as(options.name) if options.name else None
        if options.name and pod is None:
            raise Usage(f"no pod {options.name!r} was created from here; give --project=ID alone")
        if not (options.project or pod):
            raise Usage("wanted --project=ID, or --name of a pod created from here")
        runner = Runner(options.dry_run)
        runner.note("requests, slices and clusters; empty lists cost nothing:")
        runner.run(*gcloud.listing(options.project or pod.project))
        if pod:
            runner.run(*_tool(pod).status(pod, options.job))
        return DONE


class Profile:
    """Fetch a trace that training recorded, or attach to a running one.

    `launch … -- python -m qwenjax.train … --profile=10:15` records steps 11 to 15 into WORKDIR/profile; --trace fetches
    that folder from worker 0, or from the bucket through GKE. --port makes the live profiler's port of worker 0 one of
    this machine, for xprof to connect to, until Ctrl-C.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.cluster profile --name=pod --trace=gcs/runs/qwen14b/profile --out=trace
  python -m qwenjax.cluster profile --name=pod --port=9012
"""

    def arguments(self, add) -> None:
        pods.arguments(add, job=True)
        add("--trace", metavar="DIR", help="folder of the trace, as seen by the run")
        add("--out", default="profile", metavar="DIR", help="where to put it here (default: profile)")
        add("--port", type=positive, metavar="PORT", help="that the run's profiler listens on")

    def run(self, options: argparse.Namespace) -> int:
        if bool(options.trace) == bool(options.port):
            raise Usage("wanted either --trace=DIR or --port=PORT")
        pod, runner = pods.pod_from(options), Runner(options.dry_run)
        if options.port:
            runner.run(*_tool(pod).tunnel(pod, options.job, options.port))
            return DONE
        runner.run(_tool(pod).fetch(pod, options.trace, options.out))
        runner.note(f"next: python -m qwenjax.profile {options.out}")
        return DONE


class Stop:
    """Stop a job on all workers: training saves first. The slice stays, and is billed, until `delete`."""

    EXAMPLES = "examples:\n  python -m qwenjax.cluster stop --name=pod --grace=600"

    def arguments(self, add) -> None:
        pods.arguments(add, job=True)
        add("--grace", type=natural, default=300, metavar="SECONDS", help="before it is killed (default: 300)")

    def run(self, options: argparse.Namespace) -> int:
        pod, runner = pods.pod_from(options), Runner(options.dry_run)
        runner.run(*_tool(pod).stop(pod, options.job, options.grace))
        runner.note(f"{pod.name} still costs {pod.chips:,} chip-hours an hour: python -m qwenjax.cluster delete")
        return DONE


class Delete:
    """Delete a pod: its slices and its request, or its GKE cluster. What is on its disks is lost, buckets stay.

    Asks for the name to be typed, unless --yes. Lists what is left in the project.
    """

    EXAMPLES = "examples:\n  python -m qwenjax.cluster delete --name=pod"

    def arguments(self, add) -> None:
        pods.arguments(add)
        add("--yes", action="store_true", help="do not ask")

    def run(self, options: argparse.Namespace) -> int:
        pod, runner = pods.pod_from(options), Runner(options.dry_run)
        if not (options.yes or options.dry_run):
            print(f"This deletes {pod.slices} x {pod.type} {pod.name!r} in {pod.project}, {pod.zone}, and its disks.")
            print("Type its name to go on: ", end="", flush=True)
            if sys.stdin.readline().strip() != pod.name:
                print("error: that is not its name; nothing was deleted", file=sys.stderr)
                return FAILED
        try:
            runner.run_with_retries(_tool(pod).delete(pod))
        except CommandFailed as error:
            if error.kind != "absent":
                raise
            runner.note(f"{pod.name} was deleted already")
        if not options.dry_run:
            pods.forget(pod.name)
        runner.note("what is left in the project, and costs:")
        runner.run(*gcloud.listing(pod.project))
        return DONE


class Worker:
    """What the other commands call on each VM: start a command in the background, print its state or log, stop it."""

    EXAMPLES = (
        "examples:\n  python -m qwenjax.cluster worker --job=train start -- python -m qwenjax.train --exp=qwen14b"
    )

    def arguments(self, add) -> None:
        add("--job", default="train", metavar="JOB", help="name of the job (default: train)")
        add("--lines", type=natural, default=100, metavar="N", help="log: how many of the last lines (default: 100)")
        add("--follow", action="store_true", help="log: go on until the job ends")
        add("--prefix", action="store_true", help="log: the host's name before each line")
        add("--grace", type=natural, default=120, metavar="SECONDS", help="stop: before it is killed (default: 120)")
        # One argument, not two: argparse would drop the -- before the command, and another -- inside it.
        add("words", nargs=argparse.REMAINDER, metavar="VERB", help="status, log, stop, or start -- COMMAND…")

    def run(self, options: argparse.Namespace) -> int:
        match options.words:
            case ["start", "--", _, *_]:
                print(jobs.start(options.job, options.words[2:]))
            case ["status"]:
                print(jobs.show_state(jobs.state(options.job)))
            case ["log"]:
                jobs.show_log(options.job, options.lines, options.follow, options.prefix)
            case ["stop"]:
                state = jobs.stop(options.job, options.grace)
                print(jobs.show_state(state))
                return FAILED if state.state == jobs.RUNNING else DONE
            case _:
                raise Usage("wanted status, log, stop, or start -- COMMAND…")
        return DONE


COMMANDS = {
    one.__name__.lower(): one() for one in (Create, Bootstrap, Launch, Logs, Status, Profile, Stop, Delete, Worker)
}


def _tool(pod: Pod):
    """The module whose functions make the command lines for a pod."""
    return xpk if pod.through == "gke" else gcloud


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.cluster COMMAND …`; returns its exit code."""
    return command_line.main("qwenjax.cluster", __doc__, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
