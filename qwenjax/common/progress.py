"""Progress and time left on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meter(name: str, total: float | None = None, unit: str = "it", hidden: bool = False) -> Iterator[Callable]:
    """Yields step(n): n more are done. Progress and time left on stderr, from the second second of work on.

    A line rewritten in place on a terminal, one every ten seconds elsewhere.
    """
    from tqdm import tqdm

    every = 0.2 if sys.stderr.isatty() else 10.0
    form = "{desc}: {percentage:.0f} %, {elapsed}, about {remaining} left" if total else None
    with tqdm(
        desc=name,
        total=total,
        unit=unit,
        unit_scale=True,
        bar_format=form,
        mininterval=every,
        delay=1,
        leave=False,
        disable=hidden,
    ) as bar:
        yield bar.update
