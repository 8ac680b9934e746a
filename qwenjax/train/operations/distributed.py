"""How the processes of one run meet at the start, and notice when one of them is gone. `places` says who is who.

jax alone waits in silence for a peer that never comes, then aborts with a C++ stack trace; likewise when one dies. So
the processes first call the roll on plain sockets, on the coordinator's own port, which jax takes over afterwards. The
sockets stay open: the kernel closes a dead process's end, process 0 tells the others whose, and all say so and exit.
"""

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from qwenjax.train.operations import restarts
from qwenjax.train.operations.launchers import Rank

GRACE = 3.0  # seconds in which an error of one process may turn out to be the loss of another
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 5}  # a machine without power is noticed in 35 s


class Missing(OSError):
    """A process of the run did not come, or is not what the others expect."""


def join(place: Rank | None, timeout: float, say: Callable[[str], None]) -> "Peers":
    """Connects the processes of a run through jax.distributed, within `timeout` seconds. Call it before using jax.

    Raises:
      Missing: a process did not come.
    """
    if place is None:
        return Peers([], 0)
    import jax

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


# ---- the roll: everyone connects to process 0 and says who it is; process 0 answers when all have come ----


class Peer(NamedTuple):
    process: int
    host: str
    socket: socket.socket


def _meet(place: Rank, timeout: float) -> list[Peer]:
    """All other processes for process 0; process 0 for the others."""
    until = time.monotonic() + timeout
    return _call_roll(place, timeout, until) if place.process == 0 else [_answer(place, timeout, until)]


def _call_roll(place: Rank, timeout: float, until: float) -> list[Peer]:
    came: dict[int, Peer] = {}
    with _listen(int(place.address.rpartition(":")[2]), until) as listener:
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


def _who_is_missing(place: Rank, absent: list[int], timeout: float) -> str:
    listed = ", ".join(map(str, absent[:8])) + (" …" if len(absent) > 8 else "")
    return (
        f"{place.processes - len(absent)} of {place.processes} processes came to {place.address} within "
        f"{timeout:g} s; process {listed} did not. Check that the same command was started there with its own "
        "--process, that it has not ended with an error, and that it reaches this address (name, port, firewall); "
        "--peer-timeout waits longer"
    )


def _answer(place: Rank, timeout: float, until: float) -> Peer:
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

    def __init__(self, peers: list[Peer], process: int):
        self.peers, self.process, self.done = tuple(peers), process, False
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
        if not self.peers:
            return code
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(GRACE)
        os._exit(code)
