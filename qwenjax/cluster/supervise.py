"""Waiting for a pod, making it ready, and keeping a job going on it over preemptions.

A slice is only ever deleted here when Google Cloud itself says that it is preempted or has failed.
"""

import shlex
import tempfile
from pathlib import Path

from qwenjax.cluster import gcloud, worker, xpk
from qwenjax.cluster import pod as pods
from qwenjax.cluster.gcloud import ABSENT, LOST, READY, WAITING
from qwenjax.cluster.pod import Pod
from qwenjax.cluster.runner import PASSING, CommandFailed, Runner, tell
from qwenjax.common.command_line import INTERRUPTED

POLL = 60  # seconds between two looks
SCRIPT = "bootstrap_vm.sh"
LONG = 3600  # seconds a job must have run for its failure to be worth another try
PATIENCE = 30  # looks in a row that may go unanswered
AGAIN = "again"


def create(pod: Pod, runner: Runner) -> None:
    """Creates the pod, or finds it created, and waits until it is there.

    Raises:
      Failed: it was refused, the request failed, or another pod has the name.
    """
    old = pods.known_as(pod.name)
    if not runner.dry:
        pods.remember(pod)  # before it exists: what may cost money must not be forgotten
    try:
        runner.insist(xpk.create(pod) if pod.through == "gke" else gcloud.create(pod))
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
        tell(f"{pod.name} exists already")
    if pod.through != "gke":
        wait(pod, runner)


def wait(pod: Pod, runner: Runner) -> None:
    """Waits until the pod is ready. Interrupted, the request stays.

    Raises:
      Failed: it is lost ("preempted") or was deleted meanwhile ("absent").
    """
    runner.note(f"every {POLL} s until it says {'READY' if pod.through == 'vm' else 'ACTIVE'}:")
    if runner.dry:
        return runner.run(gcloud.describe(pod))
    if (now := _settled(pod, runner)) != READY:
        raise _gone(pod, now)
    tell(f"{pod.name} is ready: {pod.chips:,} chips are billed")


def _settled(pod: Pod, runner: Runner) -> str:
    """READY, LOST or ABSENT, once it is no longer on its way to one of them."""
    told = False
    while (now := look(pod, runner)) == WAITING:
        if not told:
            tell(
                f"{pod.name} is not ready yet. Ctrl-C ends the waiting, NOT the request: granted, it is billed "
                f"until you delete it (python -m qwenjax.cluster delete --name={pod.name})"
            )
        told = True
        runner.sleep(POLL)
    return now


def _gone(pod: Pod, now: str) -> CommandFailed:
    if now == ABSENT:
        return CommandFailed("absent", f"{pod.name} does not exist in {pod.project}, {pod.zone}; `create` makes it")
    why = shlex.join(gcloud.describe(pod)[:-1])
    return CommandFailed(
        "preempted", f"{pod.name} was preempted or has failed; `{why}` says why, `delete` clears it away"
    )


def look(pod: Pod, runner: Runner) -> str:
    """READY, WAITING, LOST or ABSENT; a request is only as ready as its slices."""
    try:
        now = gcloud.condition(runner.read(gcloud.describe(pod)))
        if now != READY or pod.through == "vm":
            return now
        slices = {gcloud.condition(runner.read(gcloud.describe_node(pod, node))) for node in pod.nodes}
    except CommandFailed as error:
        if error.kind == "absent":
            return ABSENT
        if error.kind not in PASSING:
            raise
        tell(str(error))
        return WAITING
    return LOST if LOST in slices else READY if slices == {READY} else WAITING


def bootstrap(pod: Pod, runner: Runner) -> None:
    """Installs qwenjax on every VM, or builds the container. What is done already takes seconds."""
    root = Path(__file__).parents[2]
    source = pod.source or (str(root) if (root / ".git").exists() else "")
    if not source:
        raise ValueError("this qwenjax is not in a git checkout: give --source=CHECKOUT, or --source=WHAT for pip")
    checkout = (Path(source) / "pyproject.toml").is_file()
    if pod.through == "gke":
        if not checkout:
            raise ValueError(f"--source={source}: a container is built from a checkout of qwenjax")
        for command in xpk.bootstrap(pod, source):
            runner.insist(command)
        return
    script = next((p for p in (Path(__file__).parent / SCRIPT, root / "tpu_setup" / SCRIPT) if p.is_file()), None)
    if script is None:
        raise ValueError(f"{SCRIPT} is missing from this installation; run the command from a checkout")
    with tempfile.TemporaryDirectory(prefix="qwenjax-") as folder:
        if checkout:
            packed = str(Path("/tmp" if runner.dry else folder) / "qwenjax-source.tar.gz")
            runner.note("what is committed; changes that are not stay here")
            runner.run(gcloud.archive(source, packed))
        for command in gcloud.bootstrap(pod, str(script), packed if checkout else source, packed=checkout):
            runner.insist(command)


def launch(pod: Pod, job: str, command: list[str], retries: int, runner: Runner) -> int:
    """Starts the command on all workers; with retries stays, and starts it again until it has ended by itself.

    Returns: the exit code of the command; 0 when it was only started.
    Raises:
      Failed: the slice is absent, or is lost more often than it may be started again.
    """
    pods.check_name("--job", job)
    if pod.through == "gke":
        runner.run(xpk.launch(pod, job, command, retries))
        return 0
    starting = gcloud.start(pod, job, command)
    if not retries:
        runner.insist(starting)
        return 0
    if runner.dry:
        return _plan(pod, job, starting, runner)
    for left in reversed(range(retries + 1)):
        outcome = _attempt(pod, job, starting, runner)
        if outcome != AGAIN:
            tell(f"{job} has ended; {pod.name} is billed until you delete it")
            return outcome
        if left:
            tell(f"starting {job} again; {left} of {retries} retries left")
            runner.sleep(POLL)
    raise CommandFailed(
        "preempted", f"{job} was interrupted {retries + 1} times; the same command goes on where it was"
    )


def _plan(pod: Pod, job: str, starting: list[str], runner: Runner) -> int:
    """What `launch` with retries may come to run, in order."""
    bootstrap(pod, runner)
    runner.run(starting)
    runner.note(f"every {POLL} s, until the job has ended:")
    runner.run(gcloud.worker(pod, "status", f"--job={job}"))
    runner.note("only if the slice is preempted or has failed; then everything from the top:")
    runner.run(gcloud.delete(pod))
    create(pod, runner)
    return 0


def _attempt(pod: Pod, job: str, starting: list[str], runner: Runner) -> int | str:
    """One life of the slice: the job's exit code, or AGAIN."""
    try:
        now = _settled(pod, runner)
        if now == ABSENT:  # deleted on purpose, perhaps: never make it anew then
            raise _gone(pod, now)
        if now == LOST:
            tell(f"{pod.name} was preempted or has failed: making it anew")
            runner.insist(gcloud.delete(pod))
            create(pod, runner)
        if not _runs(pod, job, runner):
            bootstrap(pod, runner)  # always: a VM that was restarted has lost its mount
        runner.insist(starting)
        outcome = _watch(pod, job, runner)
        if outcome == AGAIN and look(pod, runner) == READY:  # peers of a dead process may hang in a collective
            runner.insist(gcloud.worker(pod, "stop", f"--job={job}"))
        return outcome
    except CommandFailed as error:
        if error.kind != "preempted" and (error.kind not in PASSING or look(pod, runner) != LOST):
            raise
        tell(str(error))
        return AGAIN


def _states(pod: Pod, job: str, runner: Runner) -> list[worker.JobState]:
    return worker.states(runner.read(gcloud.worker(pod, "status", f"--job={job}")))


def _runs(pod: Pod, job: str, runner: Runner) -> bool:
    """Whether the job runs on all workers already: then nothing may be installed under it."""
    try:
        found = _states(pod, job, runner)
    except CommandFailed:  # nothing is installed yet, or nobody answers: what comes next will tell
        return False
    return len(found) == pod.tpu.workers * pod.slices and all(one.state == worker.RUNNING for one in found)


def _watch(pod: Pod, job: str, runner: Runner) -> int | str:
    """Waits until the job has ended: its exit code, or AGAIN if it or the slice was lost.

    Raises:
      Failed: the slice was deleted, or does not answer for long although it is not lost.
    """
    silent = 0
    while True:
        try:
            outcome = verdict(_states(pod, job, runner), pod.tpu.workers * pod.slices)
            silent = 0
        except CommandFailed as error:
            if error.kind in ("denied", "signed-out", "missing"):
                raise
            tell(str(error))
            outcome, now = None, look(pod, runner)
            if now == ABSENT:
                raise _gone(pod, now) from None
            if now == LOST:
                return AGAIN
            silent += 1
            if silent == PATIENCE:
                raise CommandFailed(
                    "silent", f"{pod.name} is there, and billed, but has not answered {silent} times"
                ) from None
        if outcome is not None:
            return outcome
        runner.sleep(POLL)


def verdict(found: list[worker.JobState], workers: int) -> int | str | None:
    """What the states of all workers mean together: an exit code, AGAIN, or None while it runs.

    A worker that a signal killed, that was interrupted (exit code 3) or has no exit code (its VM was restarted) takes
    the others down with it, whatever their codes. Who stopped the job does not want it again. Any other failure is the
    command's own and would happen again, unless it ran for long: a step that hangs, or a lost peer, fail like that.
    """
    if any(one.stopped for one in found):
        tell("the job was stopped by `stop`")
        return INTERRUPTED
    ended = [one for one in found if one.state != worker.RUNNING]
    if any(one.state != worker.FINISHED or one.code == 3 or one.code > 128 for one in ended):
        return AGAIN
    for one in ended:
        if one.code:
            if one.code == 1 and one.seconds >= LONG:
                return AGAIN
            tell(f"{one.host}: the command failed by itself, exit code {one.code}; its log says why (cluster logs)")
            return one.code
    return 0 if len(ended) >= workers else None
