"""How the processes of one run connect at the start, and notice when one is lost. `launchers` says who is who.

jax alone waits in silence for a process that never comes, and aborts with a C++ stack trace when one dies. So the
processes first connect to process 0 by plain sockets, on the coordinator's port, which jax takes over afterwards. They
stay open: the kernel closes that of a dead process, process 0 tells the others whose it was, and all exit.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TextIO

from qwenjax.train.operations import restarts
from qwenjax.train.operations.launchers import Rank

MAX_LINE = 1 << 16  # characters of a message
GRACE = 3.0  # seconds in which an error of one process may turn out to be the loss of another
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 5}  # a machine without power is noticed in 35 s


class Missing(OSError):
    """A process of the run did not come, or is not what the others expect."""


def join(rank: Rank | None, timeout: float, say: Callable[[str], None]) -> "Peers":
    """Connects the processes of a run through jax.distributed, within `timeout` seconds; else raises Missing.

    Call it before using jax.
    """
    if rank is None:
        return Peers([], 0)
    import jax

    say(f"processes   this is {rank.process} of {rank.processes} ({rank.source}); meeting at {rank.address}")
    peers = Peers(_connect(rank, timeout), rank.process)
    jax.distributed.initialize(
        rank.address,
        rank.processes,
        rank.process,
        local_device_ids=rank.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=max(60, int(timeout)),
    )
    return peers


# ---- the start: every process sends process 0 its number; process 0 answers when all have come ----


class Peer(NamedTuple):
    process: int
    host: str
    socket: socket.socket
    lines: TextIO  # what it sends: one JSON object per line


def _connect(rank: Rank, timeout: float) -> list[Peer]:
    """Process 0 gets all other processes; the others get process 0."""
    deadline = time.monotonic() + timeout
    return _wait_for_all(rank, timeout, deadline) if rank.process == 0 else [_call(rank, timeout, deadline)]


def _wait_for_all(rank: Rank, timeout: float, deadline: float) -> list[Peer]:
    peers: dict[int, Peer] = {}
    with _listen(int(rank.address.rpartition(":")[2]), deadline) as listener:
        listener.settimeout(0.5)
        while len(peers) < rank.processes - 1:
            if time.monotonic() > deadline:
                absent = [i for i in range(1, rank.processes) if i not in peers]
                listed = ", ".join(map(str, absent[:8])) + (" …" if len(absent) > 8 else "")
                why = (
                    f"{len(peers) + 1} of {rank.processes} processes came to {rank.address} within {timeout:g} s; "
                    f"process {listed} did not. Check that it was started with its own --process, has not failed, and "
                    "reaches this address (name, port, firewall); --peer-timeout waits longer"
                )
                raise _refuse(peers, why)
            try:
                connection, (host, *_) = listener.accept()
            except TimeoutError:
                peers = {i: peer for i, peer in peers.items() if _is_open(peer.socket)}
                continue
            connection.settimeout(5)
            lines = connection.makefile()
            try:
                message = json.loads(lines.readline(MAX_LINE))
                i, n = int(message["process"]), int(message["processes"])
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()  # a port scanner, say
                continue
            peer = Peer(i, f"{message.get('host', '?')}, {host.removeprefix('::ffff:')}", connection, lines)
            if n != rank.processes or not 0 < i < n:
                why = f"process {i} of {n} came ({peer.host}), but process 0 was started as one of {rank.processes}"
                raise _refuse({**peers, i: peer}, f"{why}. Give all the same --processes, and each its own --process")
            if i in peers and _is_open(peers[i].socket):
                why = f"two processes have the number --process={i}: on {peers[i].host} and on {peer.host}"
                raise _refuse({**peers, -1: peer}, why)
            peers[i] = peer
    for peer in peers.values():
        _send(peer, {"go": True})
    return list(peers.values())


def _call(rank: Rank, timeout: float, deadline: float) -> Peer:
    host, _, port = rank.address.rpartition(":")
    message = {"process": rank.process, "processes": rank.processes, "host": socket.gethostname()}
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            peer = Peer(0, rank.address, connection, connection.makefile())
            connection.sendall(json.dumps(message).encode() + b"\n")
            connection.settimeout(timeout + 10)  # process 0 knows more, so it gives up first
            line = peer.lines.readline(MAX_LINE)
            if not line:
                raise ConnectionError("it closed the connection")  # perhaps it belongs to an earlier run
            answer = json.loads(line)
            break
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise Missing(
                    f"process 0 did not answer at {rank.address} within {timeout:g} s ({error}). Check that it was "
                    f"started, that {host} is its machine, and that the port is open; --peer-timeout waits longer"
                ) from None
            time.sleep(0.5)
    if "error" in answer:
        raise Missing(answer["error"])
    return peer


def _listen(port: int, deadline: float) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
        except OSError as error:  # an earlier run may still hold the port for a moment
            if time.monotonic() > deadline:
                raise Missing(f"process 0 cannot listen on port {port}: {error}. Is another run using it?") from None
            time.sleep(0.5)


def _send(peer: Peer, message: dict) -> None:
    with suppress(OSError):  # whoever reads from a closed connection notices
        peer.socket.sendall(json.dumps(message).encode() + b"\n")


def _refuse(peers: dict[int, Peer], why: str) -> Missing:
    """The error, after it was sent to all processes that came."""
    for peer in peers.values():
        _send(peer, {"error": why})
    return Missing(why)


def _is_open(connection: socket.socket) -> bool:
    """Whether the other side is still there; it has nothing to send at this time."""
    try:
        connection.setblocking(False)
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.setblocking(True)


# ---- during the run ----


class Peers:
    """The other processes of the run. When one ends without goodbye, this process names it and exits with code 1."""

    def __init__(self, peers: list[Peer], process: int):
        self.peers, self.process, self.done = peers, process, False
        self.exiting = threading.Lock()  # one thread names the loss
        for peer in peers:
            peer.socket.settimeout(None)
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):
                    peer.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            threading.Thread(target=self._watch, args=(peer,), name="peers", daemon=True).start()

    def _watch(self, peer: Peer) -> None:
        try:
            message = json.loads(peer.lines.readline(MAX_LINE))  # empty if the connection was closed
        except (OSError, ValueError):
            message = {"lost": peer.process, "host": peer.host}
        if "lost" in message and not self.done:
            self._exit(message)

    def _exit(self, message: dict) -> None:
        self.exiting.acquire()
        for peer in self.peers:
            _send(peer, message)
        text = (
            f"error: process {message['lost']} ({message['host']}) was lost; process {self.process} stops, too. Its "
            "output says why. Start all processes again with the same command: the run goes on from its last "
            "checkpoint, and ends as if it had not been interrupted"
        )
        print(text, file=sys.stderr, flush=True)
        os._exit(restarts.exit_code(restarts.PEERS_LOST))

    def goodbye(self) -> None:
        """Tells the others that this process is done, so that its closed connections are no loss."""
        self.done = True
        for peer in self.peers:
            _send(peer, {"bye": True})

    def leave(self, code: int) -> int:
        """Ends this process after an error of its own. Returns `code` if it is the only one.

        With others it exits here, after a moment: the error may come from a lost peer, whose name is then the last
        line. It says no goodbye, so the others stop, too; and it avoids jax's own exit, which waits for them.
        """
        if not self.peers:
            return code
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(GRACE)
        os._exit(code)
