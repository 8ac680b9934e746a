"""How the processes of one run find each other at the start, and notice when one of them is gone.

jax alone waits in silence for a peer that never comes, then aborts with a C++ stack trace; likewise when one dies. So
the processes first call the roll on plain sockets, on the coordinator's own port, which jax takes over afterwards. The
sockets stay open: the kernel closes a dead process's end, process 0 tells the others whose, and all say so and exit.
"""

import glob
import json
import os
import re
import select
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from qwenjax.train import restarts

GRACE = 3.0  # seconds in which an error of one process may turn out to be the loss of another
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 5}  # a machine without power is noticed in 35 s
TPU_HOSTS = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


class Missing(OSError):
    """A process of the run did not come, or is not what the others expect."""


class Place(NamedTuple):
    """One process's place in a run of several."""

    address: str  # HOST:PORT of process 0
    processes: int
    process: int
    source: str  # what said so
    local_devices: list[int] | None = None  # None: all of this machine's


def place(
    coordinator: str | None, processes: int | None, process: int | None, env: Mapping[str, str] = os.environ
) -> Place | str | None:
    """Where this process stands, by flags, JAX_… variables or SLURM; the name of a cluster that jax itself
    understands (TPU, Open MPI, Kubernetes); or None: it is alone.

    Raises:
      ValueError: half of it is said, or it makes no sense.
    """
    said = {
        "--coordinator": coordinator or env.get("JAX_COORDINATOR_ADDRESS"),
        "--processes": _whole(processes, env, "JAX_NUM_PROCESSES"),
        "--process": _whole(process, env, "JAX_PROCESS_ID"),
    }
    if any(value is not None for value in said.values()):
        source, local = "flags or JAX_ variables", None
    elif "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        source, said, local = "SLURM", *_slurm(env)
    else:
        return _detectable(env)
    lacking = [name for name, value in said.items() if value is None]
    if lacking:
        raise ValueError(
            f"several processes need --coordinator=HOST:PORT, --processes=N and --process=I (JAX_COORDINATOR_ADDRESS, "
            f"JAX_NUM_PROCESSES, JAX_PROCESS_ID); {' and '.join(lacking)} missing"
        )
    address, n, i = said.values()
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"--coordinator={address}: wanted HOST:PORT of process 0, e.g. 10.0.0.2:8476")
    if not 0 <= i < n:
        raise ValueError(f"--process={i} of --processes={n}: wanted 0 to {n - 1}")
    return Place(address, n, i, source, local)


def _whole(value: int | None, env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if value is None and text is not None and not text.isdigit():
        raise ValueError(f"{name}={text} is not a whole number")
    return value if value is not None or text is None else int(text)


def _slurm(env: Mapping[str, str]) -> tuple[dict, list[int] | None]:
    """The first node of the step, a port by the job's number, and one device each where a node has several tasks."""
    nodes = env["SLURM_STEP_NODELIST"]  # 'a', 'a,b', 'n[001-004,007],b'
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    host = (first[1] + (first[2] or "")) if first else nodes
    n, i = int(env["SLURM_NTASKS"]), int(env["SLURM_PROCID"])
    several = n > int(env.get("SLURM_STEP_NUM_NODES", n))
    said = {
        "--coordinator": f"{host}:{61440 + int(env.get('SLURM_JOB_ID', 0)) % 4096}",
        "--processes": n,
        "--process": i,
    }
    return said, [int(env["SLURM_LOCALID"])] if several else None


def _detectable(env: Mapping[str, str]) -> str | None:
    """The cluster of several processes that jax's own detection will find here."""
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or int(env.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return "TPU"
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    # A TPU VM's shell knows nothing of its slice: without asking, every host would train a run of its own
    if "TPU_WORKER_HOSTNAMES" not in env and (glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")):
        try:
            request = urllib.request.Request(TPU_HOSTS, headers={"Metadata-Flavor": "Google"})
            with urllib.request.urlopen(request, timeout=3) as answer:
                return "TPU" if b"," in answer.read() else None
        except (urllib.error.URLError, OSError):
            return None
    return None


def join(place: Place | str | None, timeout: float, say: Callable[[str], None]) -> "Peers":
    """Connects the processes of a run through jax.distributed, within `timeout` seconds. Call it before using jax.

    Raises:
      Missing: a process did not come. ValueError: jax does not find the cluster after all.
    """
    if place is None:
        return Peers([], 0)
    import jax

    if isinstance(place, str):
        return _detected(place, timeout, say)
    say(f"processes   this is {place.process} of {place.processes} ({place.source}); meeting at {place.address}")
    peers = Peers(_meet(place, timeout), place.process)
    jax.distributed.initialize(
        place.address,
        place.processes,
        place.process,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=max(60, int(timeout)),
    )
    return peers


def _detected(name: str, timeout: float, say: Callable[[str], None]) -> "Peers":
    """The same where only jax knows who is who: first jax, against a clock of ours, then the roll."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    def give_up():
        say(
            f"error: this is a process of several ({name}), but they did not all come within {timeout:g} s; jax does "
            "not say which. Check that the same command was started on every host and none ended early, and that "
            "they reach each other (JAX_COORDINATOR_PORT). --peer-timeout waits longer"
        )
        os._exit(restarts.code(restarts.PEERS))

    clock = threading.Timer(timeout, give_up)
    clock.daemon = True
    clock.start()
    jax.distributed.initialize(initialization_timeout=int(timeout) + 60)
    n, i = jax.process_count(), jax.process_index()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which of our addresses faces outwards
        own = probe.getsockname()[0]
    listener = socket.create_server(("", 0)) if i == 0 else None
    mine = [*map(int, own.split(".")), listener.getsockname()[1] if listener else 0]
    *ip, port = multihost_utils.broadcast_one_to_all(np.array(mine, np.int32)).tolist()
    clock.cancel()
    there = Place(f"{'.'.join(map(str, ip))}:{port}", n, i, name)
    say(f"processes   this is {i} of {n} ({name})")
    try:
        return Peers(_meet(there, min(timeout, 60), listener), i)
    except Missing as error:
        say(f"processes   a lost peer will be noticed by jax's heartbeat only: {error}")
        return Peers([], i, alone=False)


# ---- the roll: everyone connects to process 0 and says who it is; process 0 answers when all have come ----


class Peer(NamedTuple):
    process: int
    host: str
    socket: socket.socket


def _meet(place: Place, timeout: float, listener: socket.socket | None = None) -> list[Peer]:
    """All other processes for process 0; process 0 for the others."""
    until = time.monotonic() + timeout
    return _call_roll(place, timeout, until, listener) if place.process == 0 else [_answer(place, timeout, until)]


def _call_roll(place: Place, timeout: float, until: float, listener: socket.socket | None) -> list[Peer]:
    came: dict[int, Peer] = {}
    listener = listener or _listen(int(place.address.rpartition(":")[2]), until)
    with listener:
        listener.settimeout(0.5)
        while len(came) < place.processes - 1:
            if time.monotonic() > until:
                absent = [i for i in range(1, place.processes) if i not in came]
                raise _tell(came, _who_is_missing(place, absent, timeout))
            try:
                connection, (host, *_) = listener.accept()
            except TimeoutError:
                came = {i: peer for i, peer in came.items() if _open(peer.socket)}
                continue
            connection.settimeout(5)
            try:
                said = json.loads(_line(connection))
                i, n = int(said["process"]), int(said["processes"])
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()  # something else that knocks on ports
                continue
            peer = Peer(i, f"{said.get('host', '?')}, {host.removeprefix('::ffff:')}", connection)
            if n != place.processes or not 0 < i < n:
                why = f"process {i} of {n} came ({peer.host}), but process 0 was started as one of {place.processes}"
                raise _tell({**came, i: peer}, f"{why}. Give all the same --processes, and each its own --process")
            if i in came and _open(came[i].socket):
                why = f"two processes call themselves --process={i}: on {came[i].host} and on {peer.host}"
                raise _tell({**came, -1: peer}, why)
            came[i] = peer
    for peer in came.values():
        _send(peer, {"go": True})
    return list(came.values())


def _who_is_missing(place: Place, absent: list[int], timeout: float) -> str:
    listed = ", ".join(map(str, absent[:8])) + (" …" if len(absent) > 8 else "")
    return (
        f"{place.processes - len(absent)} of {place.processes} processes came to {place.address} within "
        f"{timeout:g} s; process {listed} did not. Check that the same command was started there with its own "
        "--process, that it has not ended with an error, and that it reaches this address (name, port, firewall); "
        "--peer-timeout waits longer"
    )


def _answer(place: Place, timeout: float, until: float) -> Peer:
    host, _, port = place.address.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            try:
                me = {"process": place.process, "processes": place.processes, "host": socket.gethostname()}
                connection.sendall(json.dumps(me).encode() + b"\n")
                connection.settimeout(timeout + 10)  # process 0 knows more: let it speak first
                answer = json.loads(_line(connection))
                break
            except TimeoutError:
                raise Missing(f"process 0 at {place.address} answered, but the others did not come") from None
            except ValueError as error:  # it hung up: perhaps the last of an earlier run
                connection.close()
                raise ConnectionError("the process there hung up") from error
        except (socket.gaierror, ConnectionError, TimeoutError, OSError) as error:
            if isinstance(error, Missing):
                raise
            if time.monotonic() > until:
                raise Missing(
                    f"process 0 did not answer at {place.address} within {timeout:g} s ({error}). Check that it was "
                    f"started, that {host} is its machine, and that the port is open; --peer-timeout waits longer"
                ) from None
            time.sleep(0.5)
    if "error" in answer:
        raise Missing(answer["error"])
    return Peer(0, place.address, connection)


def _listen(port: int, until: float) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    while True:
        try:
            family = socket.AF_INET6 if both else socket.AF_INET
            return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
        except OSError as error:  # an earlier run may need a moment to let go of it
            if time.monotonic() > until:
                raise Missing(f"process 0 cannot listen on port {port}: {error}. Is another run using it?") from None
            time.sleep(0.5)


def _line(connection: socket.socket) -> str:
    """The next line, byte by byte: another may follow it. ValueError: the other side hung up."""
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(1)
        if not more or len(data) > 1 << 16:
            raise ValueError("no line")
        data += more
    return data.decode()


def _send(peer: Peer, message: dict) -> None:
    with suppress(OSError):  # if it is gone, whoever reads from it notices
        peer.socket.sendall(json.dumps(message).encode() + b"\n")


def _tell(came: dict[int, Peer], why: str) -> Missing:
    for peer in came.values():
        _send(peer, {"error": why})
    return Missing(why)


def _open(connection: socket.socket) -> bool:
    """Whether the other side is still there; it has nothing to say at this time."""
    try:
        connection.setblocking(False)
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.setblocking(True)


class Peers:
    """The other processes of the run. When one ends without goodbye, this process names it and exits with code 1."""

    def __init__(self, peers: list[Peer], process: int, alone: bool | None = None):
        self.peers, self.process, self.done = tuple(peers), process, False
        self.alone = not peers if alone is None else alone
        for peer in peers:
            peer.socket.settimeout(None)
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):
                    peer.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if peers:
            threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def _watch(self) -> None:
        listening = {peer.socket: peer for peer in self.peers}
        while listening:
            for ready in select.select(list(listening), [], [])[0]:
                peer = listening[ready]
                try:
                    said = json.loads(_line(ready))
                except (OSError, ValueError):
                    said = {"lost": peer.process, "host": peer.host}
                if "lost" in said and not self.done:
                    self._end(said)
                del listening[ready]  # it said goodbye

    def _end(self, said: dict) -> None:
        for peer in self.peers:
            _send(peer, said)
        print(
            f"error: process {said['lost']} ({said['host']}) was lost; process {self.process} stops, too. Its own "
            "output says why. Start all processes again with the same command: the run goes on from its last "
            "checkpoint, and ends as if nothing had happened",
            file=sys.stderr,
            flush=True,
        )
        os._exit(restarts.code(restarts.PEERS))

    def goodbye(self) -> None:
        """This process is done and will close its connections; what the others do from here on does not concern it."""
        self.done = True
        for peer in self.peers:
            _send(peer, {"bye": True})

    def leave(self, code: int) -> int:
        """Ends this process after an error of its own: `code` to return if it is alone, else the end, here.

        The error may come of a lost peer, whose name would then be the last line. Without goodbye, so that the others
        stop, too; and not through jax's own way out, which waits for them.
        """
        if self.alone:
            return code
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(GRACE)
        os._exit(code)
