"""Waits for a pod, installs the code on it, and keeps a job running on it across preemptions.

It deletes a slice only when Google Cloud itself says that the slice is preempted or has failed.
"""

import shlex
import tempfile
from pathlib import Path

from qwenjax.cluster import gcloud, worker, xpk
from qwenjax.cluster import pod as pods
from qwenjax.cluster.gcloud import ABSENT, LOST, READY, WAITING
from qwenjax.cluster.pod import Pod
from qwenjax.cluster.runner import TRANSIENT, CommandFailed, Runner, say
from qwenjax.common.command_line import INTERRUPTED

POLL_SECONDS = 60
SCRIPT = "bootstrap_vm.sh"
LONG_RUN = 3600  # seconds; a job that fails after this long is started again
MAX_SILENT_POLLS = 30  # in a row
RESTART = "restart"


def create(pod: Pod, runner: Runner) -> None:
    """Creates the pod, unless it exists, and waits until it is ready. Interrupted, it leaves the request in place."""
    old = pods.known_as(pod.name)
    if not runner.dry:
        pods.remember(pod)  # before it exists, so that an interrupted request, which may cost money, is known
    try:
        runner.run_with_retries(xpk.create(pod) if pod.through == "gke" else gcloud.create(pod))
    except CommandFailed as error:
        if error.kind != "exists" or old != pod:
            pods.remember(old) if old else pods.forget(pod.name)
            if error.kind == "exists":
                raise CommandFailed(
                    "exists",
                    f"{pod.name} exists in {pod.project}, but was not created by this command from here; use another "
                    "--name, or give the other commands its --project, --zone, --type … as it is",
                ) from None
            raise
        say(f"{pod.name} exists already")
    if pod.through == "gke":
        return None
    runner.note(f"every {POLL_SECONDS} s until it says {'READY' if pod.through == 'vm' else 'ACTIVE'}:")
    if runner.dry:
        return runner.run(gcloud.describe(pod))
    if (now := _settled_state(pod, runner)) != READY:
        raise _lost_error(pod, now)
    say(f"{pod.name} is ready: {pod.chips:,} chips are billed")


def _settled_state(pod: Pod, runner: Runner) -> str:
    """Waits while the pod changes; READY, LOST or ABSENT."""
    if (now := pod_state(pod, runner)) == WAITING:
        say(
            f"{pod.name} is not ready yet. Ctrl-C ends the waiting, NOT the request: granted, it is billed "
            f"until you delete it (python -m qwenjax.cluster delete --name={pod.name})"
        )
    while now == WAITING:
        runner.sleep(POLL_SECONDS)
        now = pod_state(pod, runner)
    return now


def _lost_error(pod: Pod, now: str) -> CommandFailed:
    if now == ABSENT:
        return CommandFailed("absent", f"{pod.name} does not exist in {pod.project}, {pod.zone}; `create` makes it")
    why = shlex.join(gcloud.describe(pod)[:-1])
    return CommandFailed("preempted", f"{pod.name} was preempted or has failed; `{why}` says why, `delete` removes it")


def pod_state(pod: Pod, runner: Runner) -> str:
    """READY, WAITING, LOST or ABSENT. A request counts as ready when all its slices are."""
    try:
        now = gcloud.condition(runner.output_of(gcloud.describe(pod)))
        if now != READY or pod.through == "vm":
            return now
        slices = {gcloud.condition(runner.output_of(gcloud.describe(pod, node))) for node in pod.nodes}
    except CommandFailed as error:
        if error.kind == "absent":
            return ABSENT
        if error.kind not in TRANSIENT:
            raise
        say(str(error))
        return WAITING
    return LOST if LOST in slices else READY if slices == {READY} else WAITING


def bootstrap(pod: Pod, runner: Runner) -> None:
    """Installs qwenjax on every VM, or builds the container. Repeated, it takes seconds."""
    root = Path(__file__).parents[2]
    source = pod.source or (str(root) if (root / ".git").exists() else "")
    if not source:
        raise ValueError("this qwenjax is not in a git checkout: give --source=CHECKOUT, or --source=WHAT for pip")
    checkout = (Path(source) / "pyproject.toml").is_file()
    if pod.through == "gke":
        if not checkout:
            raise ValueError(f"--source={source}: a container is built from a checkout of qwenjax")
        runner.run_with_retries(*xpk.bootstrap(pod, source))
        return
    script = next((p for p in (Path(__file__).parent / SCRIPT, root / "tpu_setup" / SCRIPT) if p.is_file()), None)
    if script is None:
        raise ValueError(f"{SCRIPT} is missing from this installation; run the command from a checkout")
    with tempfile.TemporaryDirectory(prefix="qwenjax-") as folder:
        packed = Path("/tmp" if runner.dry else folder) / "qwenjax-source.tar.gz"
        if checkout:
            runner.note("packs the last commit; uncommitted changes are left out")
            archive = ["git", "-C", source, "archive", "--format=tar.gz", "--prefix=source/", f"--output={packed}"]
            runner.run([*archive, "HEAD"])
        runner.run_with_retries(*gcloud.bootstrap(pod, script, packed if checkout else source))


def launch(pod: Pod, job: str, command: list[str], retries: int, runner: Runner) -> int:
    """Starts the command on all workers. With retries it stays, and starts the command again after interruptions.

    Returns: the exit code of the command; 0 if it was only started.
    """
    if pod.through == "gke":
        runner.run(xpk.launch(pod, job, command, retries))
        return 0
    starting = gcloud.worker(pod, job, "start", "--", *command)
    if not retries:
        runner.run_with_retries(starting)
        return 0
    if runner.dry:
        return _dry_launch(pod, job, starting, runner)
    for left in range(retries, -1, -1):
        outcome = _attempt(pod, job, starting, runner)
        if outcome != RESTART:
            say(f"{job} has ended; {pod.name} is billed until you delete it")
            return outcome
        if left:
            say(f"starting {job} again; {left} of {retries} retries left")
            runner.sleep(POLL_SECONDS)
    raise CommandFailed("preempted", f"{job} was interrupted {retries + 1} times; run the same command again")


def _dry_launch(pod: Pod, job: str, starting: list[str], runner: Runner) -> int:
    """Prints what `launch` with retries may run, in order."""
    bootstrap(pod, runner)
    runner.run(starting)
    runner.note(f"every {POLL_SECONDS} s, until the job has ended:")
    runner.run(gcloud.worker(pod, job, "status"))
    runner.note("only if the slice is preempted or has failed; then everything from the top:")
    runner.run(gcloud.delete(pod))
    create(pod, runner)
    return 0


def _attempt(pod: Pod, job: str, starting: list[str], runner: Runner) -> int | str:
    """Runs the job until it ends or is interrupted: its exit code, or RESTART."""
    try:
        now = _settled_state(pod, runner)
        if now == ABSENT:  # perhaps deleted on purpose, so it is not created again
            raise _lost_error(pod, now)
        if now == LOST:
            say(f"{pod.name} was preempted or has failed: creating it again")
            runner.run_with_retries(gcloud.delete(pod))
            create(pod, runner)
        if not _runs(pod, job, runner):
            bootstrap(pod, runner)  # even on an old slice: a restarted VM has lost its mount
        runner.run_with_retries(starting)
        outcome = _watch(pod, job, runner)
        if outcome == RESTART and pod_state(pod, runner) == READY:  # peers of a dead process may hang in a collective
            runner.run_with_retries(gcloud.worker(pod, job, "stop"))
        return outcome
    except CommandFailed as error:
        if error.kind != "preempted" and (error.kind not in TRANSIENT or pod_state(pod, runner) != LOST):
            raise
        say(str(error))
        return RESTART


def _states(pod: Pod, job: str, runner: Runner) -> list[worker.JobState]:
    return worker.states(runner.output_of(gcloud.worker(pod, job, "status")))


def _runs(pod: Pod, job: str, runner: Runner) -> bool:
    """Whether the job already runs on all workers. Nothing may be installed then."""
    try:
        states = _states(pod, job, runner)
    except CommandFailed:  # nothing is installed yet, or no VM answers; the next command will show which
        return False
    return len(states) == pod.workers and all(one.state == worker.RUNNING for one in states)


def _watch(pod: Pod, job: str, runner: Runner) -> int | str:
    """Waits until the job has ended: its exit code, or RESTART if it or the slice was lost."""
    silent = 0
    while True:
        try:
            outcome, silent = job_outcome(_states(pod, job, runner), pod.workers), 0
            if outcome is not None:
                return outcome
        except CommandFailed as error:
            if error.kind in ("denied", "signed-out", "missing"):
                raise
            say(str(error))
            now, silent = pod_state(pod, runner), silent + 1
            if now == ABSENT:
                raise _lost_error(pod, now) from None
            if now == LOST:
                return RESTART
            if silent == MAX_SILENT_POLLS:
                message = f"{pod.name} is there, and billed, but has not answered {silent} times"
                raise CommandFailed("silent", message) from None
        runner.sleep(POLL_SECONDS)


def job_outcome(states: list[worker.JobState], workers: int) -> int | str | None:
    """What the states of all workers mean together: an exit code, RESTART, or None while the job runs.

    A worker that was killed by a signal, was interrupted (exit code 3) or has no exit code (its VM was restarted) makes
    the others fail: RESTART. Any other failure is the command's own and would happen again, unless it ran for long: a
    hanging step or a lost peer also ends in exit code 1.
    """
    if any(one.stopped for one in states):
        say("the job was stopped by `stop`")
        return INTERRUPTED
    ended = [one for one in states if one.state != worker.RUNNING]
    if any(one.state != worker.FINISHED or one.code == 3 or one.code > 128 for one in ended):
        return RESTART
    for one in ended:
        if one.code:
            if one.code == 1 and one.seconds >= LONG_RUN:
                return RESTART
            say(f"{one.host}: the command failed by itself, exit code {one.code}; its log says why (cluster logs)")
            return one.code
    return 0 if len(ended) >= workers else None
