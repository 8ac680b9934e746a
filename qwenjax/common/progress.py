"""Progress, time left and messages on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
    bar_format = "{desc}: {percentage:.0f} %, {elapsed}, about {remaining} left" if total else None
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
