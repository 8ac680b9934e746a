"""The rank of a process in its run: from flags, JAX_… variables, or its launcher.

Flags have priority over variables, and both over the launcher: Open MPI, SLURM, a TPU slice (GKE, or the metadata of a
TPU VM), or an indexed Kubernetes job. jax does not know Open MPI 5 or SLURM tasks that see one GPU each.
"""

import glob
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from typing import NamedTuple

TPU_PORT = "8482"  # of the coordinator on a TPU slice, as in jax
FIRST_PORT = 61440  # a job of a launcher gets one of the 4096 ports from here on, by its number


class Rank(NamedTuple):
    """The position of one process in a run of several. A launcher may leave out `address` and `processes`."""

    address: str | None  # HOST:PORT of process 0
    processes: int | None
    process: int
    source: str  # where this was found
    local_devices: list[int] | None = None  # None: all of this machine's


_SINGLE = Rank(None, 1, 0, "")


def find(
    coordinator: str | None, processes: int | None, process: int | None, env: Mapping[str, str] = os.environ
) -> Rank | None:
    """The rank of this process; None: it is the only one, as with `processes` of 1, whatever a launcher says.

    Raises:
      ValueError: a part is missing, the launcher contradicts, or the numbers make no sense.
    """
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    processes = _number(env, "JAX_NUM_PROCESSES") if processes is None else processes
    process = _number(env, "JAX_PROCESS_ID") if process is None else process
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if processes == 1 and not process:
        return None
    launched = _launcher(env) if None in given.values() else None
    if launched:
        for (name, value), own in zip(tuple(given.items()), launched):
            if name != "--coordinator" and None not in (value, own) and value != own:
                raise ValueError(
                    f"{name}={value} is given (by flag or JAX_ variable), but {launched.source} says {own}; leave it "
                    "to one of them, or give all of --coordinator, --processes and --process"
                )
            given[name] = own if value is None else value
    if given == {"--coordinator": None, "--processes": None, "--process": launched and 0}:
        return None  # also the first pod of a Kubernetes job, which may be the only one
    missing = " and ".join(name for name, value in given.items() if value is None)
    if missing:
        known = f": {launched.source} started this as process {launched.process}, and says no more" if launched else ""
        raise ValueError(
            "several processes need --coordinator=HOST:PORT, --processes=N and --process=I (JAX_COORDINATOR_ADDRESS, "
            f"JAX_NUM_PROCESSES, JAX_PROCESS_ID); {missing} missing{known}"
        )
    address, n, i = given.values()
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"--coordinator={address}: wanted HOST:PORT of process 0, e.g. 10.0.0.2:8476")
    if not 0 <= i < n:
        raise ValueError(f"--process={i} of --processes={n}: wanted 0 to {n - 1}")
    return Rank(address, n, i, *(launched[3:] if launched else ("flags or JAX_ variables",)))


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if text is not None and not text.isdigit():
        raise ValueError(f"{name}={text} is not a whole number")
    return None if text is None else int(text)


def _required(env: Mapping[str, str], name: str, launcher: str) -> int:
    number = _number(env, name)
    if number is None:
        text = f"{launcher} started several processes, but {name} is not set in this one"
        raise ValueError(f"{text}; give --coordinator, --processes and --process (--processes=1: this is the only one)")
    return number


def _launcher(env: Mapping[str, str]) -> Rank | None:
    """The launcher of this process, if it started several. mpirun first: under SLURM it starts helpers by srun."""
    for ask in (_open_mpi, _slurm, _tpu):
        launched = ask(env)
        if launched:
            return launched if launched.processes > 1 else None
    index = _number(env, "JOB_COMPLETION_INDEX") if "KUBERNETES_SERVICE_HOST" in env else None
    return None if index is None else Rank(None, None, index, "Kubernetes (JOB_COMPLETION_INDEX)")


def _open_mpi(env: Mapping[str, str]) -> Rank | None:
    n = _number(env, "OMPI_COMM_WORLD_SIZE")
    if n is None or n == 1:
        return n and _SINGLE
    i = _required(env, "OMPI_COMM_WORLD_RANK", "Open MPI")
    local = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE") or n
    # version 4 names the machine of mpirun: '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911', or tcp6://[fe80::1]:34911
    uri = env.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://([^,:]+)|tcp6://(\[[^],]+)", uri)
    address = host and (host[1] or host[2] + "]")
    if not address and local == n:
        address = "localhost"
    job = int(uri.partition(".")[0]) // 4096 if host else zlib.crc32(env.get("PMIX_NAMESPACE", "").encode())
    devices = _one_each(env, local, _number(env, "OMPI_COMM_WORLD_LOCAL_RANK"))
    return Rank(address and _at(address, job, env), n, i, "Open MPI", devices)


def _slurm(env: Mapping[str, str]) -> Rank | None:
    """A step of several tasks. A batch script or shell that has not called srun is no step."""
    if "SLURM_STEP_NODELIST" not in env:
        return None
    n = _number(env, "SLURM_STEP_NUM_TASKS") or _required(env, "SLURM_NTASKS", "SLURM")
    if n == 1:
        return _SINGLE
    i, job = _required(env, "SLURM_PROCID", "SLURM"), _required(env, "SLURM_JOB_ID", "SLURM")
    nodes = env["SLURM_STEP_NODELIST"]  # 'a', 'a,b', 'n[001-004,007],b', 'rack[1-2]n[0-7]'
    first = re.match(r"(?:\[[^]]*\]|[^,[])*", nodes)[0]
    host = re.sub(r"\[(\w+)[^]]*\]", r"\1", first)
    tasks = n // max(1, _number(env, "SLURM_STEP_NUM_NODES") or n)
    devices = _one_each(env, tasks, _number(env, "SLURM_LOCALID"))
    return Rank(_at(host, job, env), n, i, "SLURM", devices)


def _at(host: str, job: int, env: Mapping[str, str]) -> str:
    return f"{host}:{env.get('JAX_COORDINATOR_PORT') or FIRST_PORT + job % 4096}"


def _one_each(env: Mapping[str, str], tasks: int, local: int | None) -> list[int] | None:
    """One device for each of several tasks on a machine, unless the launcher shows each only its own."""
    own = "CUDA_VISIBLE_DEVICES" in env and "," not in env["CUDA_VISIBLE_DEVICES"]
    return None if tasks < 2 or local is None or own else [local]


def _tpu(env: Mapping[str, str]) -> Rank | None:
    """The hosts of a slice, times slices. GKE sets variables; on a TPU VM only the metadata says it."""
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        get = env.get
    elif "TPU_SKIP_MDS_QUERY" in env or not _has_tpu():
        return None
    else:
        endpoints = _metadata("worker-network-endpoints", env)
        if not endpoints:
            return None
        hosts = ",".join(one.split(":")[-1] for one in endpoints.split(","))  # 'name:id:ip', or 'ip'
        listed = re.findall(r"^\s*(\w+)\s*:\s*'?([^'\n]*)", _metadata("tpu-env", env) or "", re.MULTILINE)
        own = {"TPU_WORKER_ID": _metadata("agent-worker-number", env)}
        get = {**{name: value.strip() for name, value in listed}, **own, **env}.get
    names = ("TPU_WORKER_ID", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS")
    found = {name: value for name in names if (value := get(name))}
    workers, slices = hosts.split(","), _number(found, "MEGASCALE_NUM_SLICES") or 1
    n = len(workers) * slices
    if n == 1:
        return _SINGLE
    i = _required(found, "TPU_WORKER_ID", "TPU") if len(workers) > 1 else 0
    first = workers[0]
    if slices > 1:
        i += _required(found, "MEGASCALE_SLICE_ID", "TPU") * len(workers)
        first = found.get("MEGASCALE_COORDINATOR_ADDRESS")
    address = first and f"{first.partition(':')[0]}:{env.get('JAX_COORDINATOR_PORT') or TPU_PORT}"
    return Rank(address, n, i, f"TPU, {slices} slices" if slices > 1 else "TPU")


def _has_tpu() -> bool:
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _metadata(name: str, env: Mapping[str, str]) -> str | None:
    """An attribute of this machine from Google Cloud's metadata server; None: no such attribute, or no server."""
    url = f"http://{env.get('GCE_METADATA_IP', 'metadata.google.internal')}/computeMetadata/v1/instance/attributes/"
    request = urllib.request.Request(url + name, headers={"Metadata-Flavor": "Google"})
    for _ in range(3):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
        except OSError:
            pass
    return None
