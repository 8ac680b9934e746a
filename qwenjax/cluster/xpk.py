"""Command lines for GKE through XPK, with the functions of gcloud.py (docs/usage of github.com/AI-Hypercomputer/xpk).

The pod is a cluster, a launch is a workload in it, and bootstrapping is building the container.
"""

import shlex

from qwenjax.cluster.pod import Pod

MOUNT = "/srv/qwenjax/gcs"  # the container works in /srv/qwenjax, so that gcs/… is the same path as on a TPU VM


def _xpk(pod: Pod, *words: str) -> list[str]:
    return ["xpk", *words, f"--cluster={pod.name}", f"--zone={pod.zone}", f"--project={pod.project}"]


def _size(pod: Pod) -> list[str]:
    return [f"--tpu-type={pod.tpu.accelerator}", f"--num-slices={pod.slices}"]


def create(pod: Pod) -> list[str]:
    """Makes the cluster with its TPU node pools."""
    kind = f"--reservation={pod.reservation}" if pod.capacity == "reserved" else f"--{pod.capacity}"
    return [*_xpk(pod, "cluster", "create"), *_size(pod), kind]


def bootstrap(pod: Pod, checkout: str) -> list[list[str]]:
    """Builds and pushes the container, and attaches the bucket to the cluster."""
    dockerfile = f"--file={checkout}/tpu_setup/Dockerfile"
    build = ["docker", "build", dockerfile, "--build-arg=EXTRA=tpu", f"--tag={pod.image}", checkout]
    attach = [*_xpk(pod, "storage", "attach", f"{pod.name}-gcs"), "--type=gcsfuse", f"--bucket={pod.bucket}"]
    attach += [f"--mount-point={MOUNT}", "--readonly=false", "--size=1", "--auto-mount=true"]
    attach += ["--mount-options=uid=1000,gid=1000,implicit-dirs,rename-dir-limit=200000"]
    return [build, ["docker", "push", pod.image], *([attach] if pod.bucket else [])]


def launch(pod: Pod, job: str, command: list[str], retries: int) -> list[str]:
    """Submits the command to all workers; GKE itself starts it again, `retries` times."""
    what = [f"--workload={job}", f"--docker-image={pod.image}", f"--max-restarts={retries}"]
    return [*_xpk(pod, "workload", "create"), *what, *_size(pod), f"--command={shlex.join(command)}"]


def status(pod: Pod, job: str) -> list[list[str]]:
    """Lists the workloads of the cluster."""
    return [_xpk(pod, "workload", "list")]


def stop(pod: Pod, job: str, grace: int) -> list[list[str]]:
    """Ends a workload; the cluster stays. Kubernetes has its own grace period."""
    return [[*_xpk(pod, "workload", "delete"), f"--workload={job}", "--force"]]


def delete(pod: Pod) -> list[str]:
    """Deletes the cluster with its node pools."""
    return [*_xpk(pod, "cluster", "delete"), "--force"]


def logs(pod: Pod, job: str, workers: str, lines: int, follow: bool) -> list[list[str]]:
    """Prints the log of worker "0", or of "all"."""
    label = f"jobset.sigs.k8s.io/jobset-name={job}"
    if workers == "0":
        label += ",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    words = [f"--selector={label}", "--all-containers", "--prefix", f"--tail={lines}"]
    words += [f"--max-log-requests={2 * pod.workers}", *["--follow"] * follow]  # containers; kubectl's own limit is 5
    return [_credentials(pod), ["kubectl", "logs", *words]]


def tunnel(pod: Pod, job: str, port: int) -> list[list[str]]:
    """Forwards a port of this machine to worker 0, until interrupted."""
    return [_credentials(pod), ["kubectl", "port-forward", f"jobs/{job}-slice-job-0", f"{port}:{port}"]]


def fetch(pod: Pod, folder: str, out: str) -> list[str]:
    """Copies a folder of the bucket to this machine."""
    return ["gcloud", "storage", "cp", "--recursive", f"gs://{pod.bucket}/{folder.removeprefix('gcs/')}", out]


def _credentials(pod: Pod) -> list[str]:
    """Lets kubectl connect to the cluster, which is regional."""
    region = pod.zone.rpartition("-")[0]
    words = [pod.name, f"--location={region}", f"--project={pod.project}"]
    return ["gcloud", "container", "clusters", "get-credentials", *words]
