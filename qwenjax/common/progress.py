"""Progress, time left and messages on stderr."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO


def printer(shown: bool = True) -> Callable[[str], None]:
    """A function that prints a line on stderr, or one that does nothing."""
    return (lambda line: print(line, file=sys.stderr, flush=True)) if shown else (lambda line: None)


@contextmanager
def meter(name: str, total: float | None = None, unit: str = "it", hidden: bool = False) -> Iterator[Callable]:
    """Yields step(n), which counts n more as done. Work of more than a second shows its progress and the time left.

    On a terminal one line is rewritten in place, elsewhere a line is printed every ten seconds.
    """
    from tqdm import tqdm

    every = 0.2 if sys.stderr.isatty() else 10.0
    rate = ", {rate_fmt}" if unit == "B" else ""
    bar_format = f"{{desc}}: {{percentage:.0f}} %, {{elapsed}}{rate}, about {{remaining}} left" if total else None
    with tqdm(
        desc=name,
        total=total,
        unit=unit,
        unit_scale=True,
        bar_format=bar_format,
        mininterval=every,
        delay=1,
        leave=False,
        disable=hidden,
    ) as bar:
        yield bar.update


class StatusLine:
    """One line on stderr about a run: rewritten in place on a terminal, elsewhere printed every `every` seconds."""

    def __init__(self, every: float = 15.0, stream: IO | None = None):
        self.stream = stream or sys.stderr
        self.tty = self.stream.isatty()
        self.every = 0.2 if self.tty else every
        self.last, self.width = -math.inf, 0

    def show(self, line: str, force: bool = False) -> None:
        """Shows the line, unless the last one is too recent and `force` is false."""
        now = time.monotonic()
        if not force and now - self.last < self.every:
            return
        self.last = now
        end = "" if self.tty else "\n"
        print(("\r" + line.ljust(self.width)) if self.tty else line, end=end, file=self.stream, flush=True)
        self.width = len(line)

    def say(self, text: str) -> None:
        """Prints a message that stays, above the line."""
        if self.tty and self.width:
            print("\r" + " " * self.width + "\r", end="", file=self.stream)
        self.width = 0
        print(text, file=self.stream, flush=True)
