"""`--profile=START:STOP`: the XLA profiler's trace of some steps, and the names by which it knows a run's parts.

`python -m qwenjax.profile` reads such traces: steps from what `mark` annotates, the wait for data from `INPUT`. A
profiler that attaches to a run (`--profiler-port`) sees both, too.
"""

import socket
from collections.abc import Callable
from pathlib import Path

import jax

INPUT = "input"


def mark(step: int) -> jax.profiler.StepTraceAnnotation:
    """A context that is, to whoever traces it, the `step`-th step from 1."""
    return jax.profiler.StepTraceAnnotation("train", step_num=step)


def serve(port: int) -> None:
    """Lets a profiler attach to this process, at `port` of any of its addresses.

    Raises:
      OSError: the port is taken; jax would log that and go on.
    """
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise OSError(
            f"--profiler-port={port}: {error.strerror}. Each process on a machine needs a port of its own"
        ) from None
    jax.profiler.start_server(port)


class Recorder:
    """A context around all steps; in it, those after START are recorded until STOP are done.

    Args:
      folder: local; every process writes its own trace there.
      steps: (START, STOP), or None for no recording.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, say: Callable[[str], None]):
        self.folder, self.say = folder, say
        self.start, self.stop = steps or (0, 0)
        self.waiting, self.recording = steps is not None, False

    def __enter__(self) -> "Recorder":
        return self

    def before(self, done: int) -> None:
        """To be called before each step, with the number of steps that are done."""
        if self.recording and done >= self.stop:
            self._end()
        if self.waiting and self.start <= done < self.stop:
            self.waiting, self.recording = False, True
            jax.profiler.start_trace(str(self.folder))

    def __exit__(self, *_) -> None:
        if self.recording:
            self._end()
        if self.waiting:
            self.say(f"profile     nothing recorded: none of the steps {self.start + 1} to {self.stop} was done")

    def _end(self) -> None:
        self.recording = False
        jax.profiler.stop_trace()
        self.say(f"profile     recorded; `python -m qwenjax.profile {self.folder}` says what the time went into")
