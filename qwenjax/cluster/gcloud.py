"""Command lines for TPU VMs: from a Pod to lists of arguments (cloud.google.com/sdk/gcloud/reference/compute/tpus)."""

import shlex
from pathlib import Path

from qwenjax.cluster.pod import Pod

# With this scope the roles of the VMs' service account decide what it may do; the default scopes forbid writing to a
# bucket.
SCOPES = "--scopes=https://www.googleapis.com/auth/cloud-platform"
HOME = "qwenjax"  # folder on every VM, relative to the home directory: venv/, gcs/, launched/
READY, WAITING, LOST, ABSENT = "ready", "waiting", "lost", "absent"
# All other states, such as WAITING_FOR_RESOURCES, CREATING, SUSPENDING or DELETING, are on the way to one of these.
CONDITIONS = dict.fromkeys(("ACTIVE", "READY"), READY)  # of a queued resource, of a node
CONDITIONS |= dict.fromkeys(("FAILED", "SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED"), LOST)


def _tpus(kind: str, verb: str, pod: Pod, *words: str) -> list[str]:
    return ["gcloud", "compute", "tpus", kind, verb, *words, f"--zone={pod.zone}", f"--project={pod.project}"]


def create(pod: Pod) -> list[str]:
    """Requests the slices; through a queue this returns before they exist."""
    if pod.through == "vm":
        kind, version, nodes = "tpu-vm", "--version", []
    else:
        kind, version, nodes = "queued-resources", "--runtime-version", [f"--node-id={pod.name}"]
    if pod.slices > 1:
        nodes = [f"--node-count={pod.slices}", f"--node-prefix={pod.name}"]
    what = [f"--accelerator-type={pod.tpu.accelerator}", f"{version}={pod.runtime or pod.tpu.runtime}", SCOPES]
    capacity = [] if pod.capacity == "on-demand" else [f"--{pod.capacity}"]
    return [*_tpus(kind, "create", pod, pod.name), *nodes, *what, *capacity]


def describe(pod: Pod, node: str = "") -> list[str]:
    """Prints the state of the request, or of one slice, as one word. Without a queue the slice is all there is."""
    if node or pod.through == "vm":
        return [*_tpus("tpu-vm", "describe", pod, node or pod.name), "--format=value(state)"]
    return [*_tpus("queued-resources", "describe", pod, pod.name), "--format=value(state.state)"]


def condition(state: str) -> str:
    """READY, WAITING or LOST (preempted or failed: it must be created again) for a state that `describe` printed."""
    return CONDITIONS.get(state.strip(), WAITING)


def delete(pod: Pod) -> list[str]:
    """Deletes the slices, and the request that holds them."""
    if pod.through == "vm":
        return [*_tpus("tpu-vm", "delete", pod, pod.name), "--quiet"]
    return [*_tpus("queued-resources", "delete", pod, pod.name), "--force", "--quiet"]


def listing(project: str) -> list[list[str]]:
    """What exists in a project, in every zone: requests, slices, and clusters (xpk would list one zone)."""
    tpus = [["gcloud", "compute", "tpus", kind, "list", "--zone=-"] for kind in ("queued-resources", "tpu-vm")]
    return [[*words, f"--project={project}"] for words in (*tpus, ["gcloud", "container", "clusters", "list"])]


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


def fetch(pod: Pod, folder: str, out: str) -> list[str]:
    """Copies a folder of worker 0, relative to where commands work, to this machine."""
    source = folder if folder.startswith("/") else f"{HOME}/{folder}"
    return [*_reach(pod, "scp", "0", f"{pod.name}:{source}", out), "--recurse"]


def tunnel(pod: Pod, job: str, port: int) -> list[list[str]]:
    """Forwards a port of this machine to worker 0, until interrupted."""
    return [[*_reach(pod, "ssh", "0", pod.name), "--", "-N", "-L", f"{port}:localhost:{port}"]]


def worker(pod: Pod, job: str, *words: str, workers: str = "all") -> list[str]:
    """Runs `python -m qwenjax.cluster worker` on the VMs, with its options and its verb: start -- COMMAND, status …"""
    return ssh(pod, [f"{HOME}/venv/bin/python", "-m", "qwenjax.cluster", "worker", f"--job={job}", *words], workers)


def logs(pod: Pod, job: str, workers: str, lines: int, follow: bool) -> list[list[str]]:
    """Prints the log of worker "0", or of "all"."""
    words = [f"--lines={lines}", *["--follow"] * follow, *["--prefix"] * (workers == "all")]
    return [worker(pod, job, *words, "log", workers=workers)]


def status(pod: Pod, job: str) -> list[list[str]]:
    """Prints the state of a job on every VM."""
    return [worker(pod, job, "status")]


def stop(pod: Pod, job: str, grace: int) -> list[list[str]]:
    """Sends SIGTERM to a job on every VM, and SIGKILL after `grace` seconds."""
    return [worker(pod, job, f"--grace={grace}", "stop")]


def bootstrap(pod: Pod, script: Path, source: str | Path) -> list[list[str]]:
    """Copies the script to every VM and runs it there; `source` is what pip installs, or the archive of a checkout."""
    files, what = ([script, source], source.name) if isinstance(source, Path) else ([script], source)
    copy = _reach(pod, "scp", "all", *map(str, files), f"{pod.name}:")
    return [copy, ssh(pod, ["bash", script.name, what, *([pod.bucket] if pod.bucket else [])])]
