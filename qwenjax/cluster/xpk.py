"""Command lines for GKE through XPK: from a Pod to lists of arguments. Nothing is run here.

The pod is a cluster, a launch is a workload in it, and bootstrapping is building the container. XPK documents its
flags in docs/usage of github.com/AI-Hypercomputer/xpk.
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
    commands = [
        ["docker", "build", dockerfile, "--build-arg=EXTRA=tpu", f"--tag={pod.image}", checkout],
        ["docker", "push", pod.image],
    ]
    if pod.bucket:
        attach = ["--type=gcsfuse", f"--bucket={pod.bucket}", f"--mount-point={MOUNT}", "--readonly=false"]
        options = "--mount-options=uid=1000,gid=1000,implicit-dirs,rename-dir-limit=200000"
        commands.append(
            [*_xpk(pod, "storage", "attach", f"{pod.name}-gcs"), *attach, "--size=1", "--auto-mount=true", options]
        )
    return commands


def launch(pod: Pod, job: str, command: list[str], retries: int) -> list[str]:
    """Submits the command to all workers; GKE itself starts it again, `retries` times."""
    what = [f"--workload={job}", f"--docker-image={pod.image}", f"--max-restarts={retries}"]
    return [*_xpk(pod, "workload", "create"), *what, *_size(pod), f"--command={shlex.join(command)}"]


def credentials(pod: Pod) -> list[str]:
    """Lets kubectl see the cluster, which is regional."""
    words = [pod.name, f"--location={pod.region}", f"--project={pod.project}"]
    return ["gcloud", "container", "clusters", "get-credentials", *words]


def logs(pod: Pod, job: str, workers: str, lines: int, follow: bool) -> list[str]:
    """The log of the first worker, or of all."""
    label = f"jobset.sigs.k8s.io/jobset-name={job}"
    if workers == "0":
        label += ",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    count = pod.tpu.workers * pod.slices * 2  # containers; kubectl follows five unless told
    words = [f"--selector={label}", "--all-containers", "--prefix", f"--tail={lines}", f"--max-log-requests={count}"]
    return ["kubectl", "logs", *words, *(["--follow"] if follow else [])]


def stop(pod: Pod, job: str) -> list[str]:
    """Ends a workload; the cluster stays."""
    return [*_xpk(pod, "workload", "delete"), f"--workload={job}", "--force"]


def delete(pod: Pod) -> list[str]:
    """Deletes the cluster with its node pools."""
    return [*_xpk(pod, "cluster", "delete"), "--force"]


def workloads(pod: Pod) -> list[str]:
    """What runs in the cluster."""
    return _xpk(pod, "workload", "list")


def listing(project: str) -> list[str]:
    """Clusters of a project, everywhere."""
    return ["gcloud", "container", "clusters", "list", f"--project={project}"]


def trace(pod: Pod, folder: str, out: str) -> list[str]:
    """Copies a folder of the bucket."""
    return ["gcloud", "storage", "cp", "--recursive", f"gs://{pod.bucket}/{folder.removeprefix('gcs/')}", out]


def tunnel(job: str, port: int) -> list[str]:
    """Makes a port of the first worker one of this machine, until interrupted."""
    return ["kubectl", "port-forward", f"jobs/{job}-slice-job-0", f"{port}:{port}"]
