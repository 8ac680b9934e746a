"""Command lines for TPU VMs: from a Pod to lists of arguments. Nothing is run here.

A queued resource waits for its turn and then holds the slices; a TPU VM asked for directly is granted at once or not.
Flags: cloud.google.com/sdk/gcloud/reference/compute/tpus.
"""

import shlex

from qwenjax.cluster.pod import Pod

# With this scope the roles of the VMs' service account decide what it may do; the default scopes forbid writing to a
# bucket.
SCOPES = "--scopes=https://www.googleapis.com/auth/cloud-platform"
HOME = "qwenjax"  # folder on every VM, relative to the home directory: venv/, gcs/, launched/
PYTHON = f"{HOME}/venv/bin/python"
READY, WAITING, LOST, ABSENT = "ready", "waiting", "lost", "absent"
CONDITIONS = {
    "ACTIVE": READY,  # queued resource
    "READY": READY,  # node
    "FAILED": LOST,
    "SUSPENDED": LOST,
    "PREEMPTED": LOST,
    "TERMINATED": LOST,
    "STOPPED": LOST,
}  # all others, such as WAITING_FOR_RESOURCES, CREATING, SUSPENDING or DELETING, are on the way to one of these


def _tpus(kind: str, verb: str, pod: Pod, *words: str) -> list[str]:
    return ["gcloud", "compute", "tpus", kind, verb, *words, f"--zone={pod.zone}", f"--project={pod.project}"]


def create(pod: Pod) -> list[str]:
    """Requests the slices; through a queue this returns before they exist."""
    runtime = pod.runtime or pod.tpu.runtime
    kind = [] if pod.capacity == "on-demand" else [f"--{pod.capacity}"]
    what = [f"--accelerator-type={pod.tpu.accelerator}"]
    if pod.through == "vm":
        return [*_tpus("tpu-vm", "create", pod, pod.name), *what, f"--version={runtime}", SCOPES, *kind]
    if pod.slices == 1:
        nodes = [f"--node-id={pod.name}"]
    else:
        nodes = [f"--node-count={pod.slices}", f"--node-prefix={pod.name}"]
    create = _tpus("queued-resources", "create", pod, pod.name)
    return [*create, *nodes, *what, f"--runtime-version={runtime}", SCOPES, *kind]


def describe(pod: Pod) -> list[str]:
    """Prints the state of the request, or of the TPU VM, as one word."""
    if pod.through == "vm":
        return describe_node(pod, pod.name)
    return [*_tpus("queued-resources", "describe", pod, pod.name), "--format=value(state.state)"]


def describe_node(pod: Pod, node: str) -> list[str]:
    """Prints the state of one slice."""
    return [*_tpus("tpu-vm", "describe", pod, node), "--format=value(state)"]


def condition(state: str) -> str:
    """READY, WAITING or LOST (preempted or failed: it must be created again) for a state that `describe` printed."""
    return CONDITIONS.get(state.strip(), WAITING)


def delete(pod: Pod) -> list[str]:
    """Deletes the slices, and the request that holds them."""
    if pod.through == "vm":
        return [*_tpus("tpu-vm", "delete", pod, pod.name), "--quiet"]
    return [*_tpus("queued-resources", "delete", pod, pod.name), "--force", "--quiet"]


def listing(project: str) -> list[list[str]]:
    """What exists in a project, in every zone: requests, and slices."""
    words = ["--zone=-", f"--project={project}"]
    return [["gcloud", "compute", "tpus", kind, "list", *words] for kind in ("queued-resources", "tpu-vm")]


def _reach(pod: Pod, verb: str, workers: str, *words: str) -> list[str]:
    """ssh or scp to worker 0 (of the first slice) or to all workers of all slices, at once."""
    if pod.slices == 1:
        command = _tpus("tpu-vm", verb, pod, *words)
    else:
        command = [*_tpus("queued-resources", verb, pod, *words), f"--node={workers}"]
    return [*command, f"--worker={workers}", *(["--batch-size=all"] if workers == "all" else [])]


def ssh(pod: Pod, command: list[str], workers: str = "all") -> list[str]:
    """Runs a command on the VMs; its words arrive there as they are."""
    return [*_reach(pod, "ssh", workers, pod.name), f"--command={shlex.join(command)}"]


def copy_to(pod: Pod, *files: str) -> list[str]:
    """Copies local files into the home directory of every VM."""
    return _reach(pod, "scp", "all", *files, f"{pod.name}:")


def fetch(pod: Pod, folder: str, out: str) -> list[list[str]]:
    """Copies a folder of worker 0, relative to where commands work, to this machine."""
    source = folder if folder.startswith("/") else f"{HOME}/{folder}"
    return [[*_reach(pod, "scp", "0", f"{pod.name}:{source}", out), "--recurse"]]


def tunnel(pod: Pod, job: str, port: int) -> list[list[str]]:
    """Forwards a port of this machine to worker 0, until interrupted."""
    return [[*_reach(pod, "ssh", "0", pod.name), "--", "-N", "-L", f"{port}:localhost:{port}"]]


def worker(pod: Pod, verb: str, *words: str, workers: str = "all") -> list[str]:
    """Runs `python -m qwenjax.cluster worker … VERB` on the VMs; `words` are its options."""
    return ssh(pod, [PYTHON, "-m", "qwenjax.cluster", "worker", *words, verb], workers)


def start(pod: Pod, job: str, command: list[str]) -> list[str]:
    """Starts a command in the background on all VMs."""
    return ssh(pod, [PYTHON, "-m", "qwenjax.cluster", "worker", f"--job={job}", "start", "--", *command])


def logs(pod: Pod, job: str, workers: str, lines: int, follow: bool) -> list[list[str]]:
    """Prints the log of worker "0", or of "all"."""
    words = [f"--job={job}", f"--lines={lines}", *["--follow"] * follow, *["--prefix"] * (workers == "all")]
    return [worker(pod, "log", *words, workers=workers)]


def status(pod: Pod, job: str) -> list[list[str]]:
    """Prints the state of a job on every VM."""
    return [worker(pod, "status", f"--job={job}")]


def stop(pod: Pod, job: str, grace: int) -> list[list[str]]:
    """Sends SIGTERM to a job on every VM, and SIGKILL after `grace` seconds."""
    return [worker(pod, "stop", f"--job={job}", f"--grace={grace}")]


def archive(checkout: str, out: str) -> list[str]:
    """Packs a checkout as committed."""
    return ["git", "-C", checkout, "archive", "--format=tar.gz", "--prefix=source/", f"--output={out}", "HEAD"]


def bootstrap(pod: Pod, script: str, source: str, packed: bool) -> list[list[str]]:
    """Copies the script (and a packed checkout) to every VM and runs it there.

    Args:
      source: local path of an archive if packed, else what pip installs.
    """
    name = script.rpartition("/")[2]
    files = [script, source] if packed else [script]
    what = source.rpartition("/")[2] if packed else source
    return [copy_to(pod, *files), ssh(pod, ["bash", name, what, *([pod.bucket] if pod.bucket else [])])]
