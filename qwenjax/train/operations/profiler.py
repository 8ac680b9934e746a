"""`--profile=START:STOP`: a trace of some steps by the XLA profiler, which `python -m qwenjax.profile` reads."""

import socket
from collections.abc import Callable
from pathlib import Path

import jax


def serve(port: int) -> None:
    """Lets a profiler attach to this process at `port`. Raises OSError if it is taken; jax would only log that."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        text = f"--profiler-port={port}: {error.strerror}. Each process on a machine needs a port of its own"
        raise OSError(text) from None
    jax.profiler.start_server(port)


class StepProfiler:
    """A context around all steps. It records those after START until STOP are done, in a local folder.

    `steps` is (START, STOP), or None for no recording.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, say: Callable[[str], None]):
        self.folder, self.say = folder, say
        self.start, self.stop = steps or (0, 0)
        self.waiting, self.recording = steps is not None, False

    def __enter__(self) -> "StepProfiler":
        return self

    def before_step(self, done: int) -> None:
        """Call it before each step, with the number of steps that are done."""
        if self.recording and done >= self.stop:
            self._stop()
        if self.waiting and self.start <= done < self.stop:
            self.waiting, self.recording = False, True
            jax.profiler.start_trace(str(self.folder))

    def __exit__(self, *_) -> None:
        if self.recording:
            self._stop()
        if self.waiting:
            self.say(f"profile     nothing recorded: none of the steps {self.start + 1} to {self.stop} was done")

    def _stop(self) -> None:
        self.recording = False
        jax.profiler.stop_trace()
        self.say(f"profile     recorded; `python -m qwenjax.profile {self.folder}` says what the time went into")
