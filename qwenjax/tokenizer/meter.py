"""Progress with the time left, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meter(name: str, total: float | None = None, unit: str = "it") -> Iterator[Callable[[float], object]]:
    """Yields step(n): n more are done. A line rewritten in place on a terminal, one every ten seconds elsewhere."""
    import sys

    from tqdm import tqdm

    every = 0.2 if sys.stderr.isatty() else 10.0
    form = "{desc}: {percentage:.0f} %, {elapsed}, about {remaining} left" if total else None
    with tqdm(
        desc=name, total=total, unit=unit, unit_scale=True, bar_format=form, mininterval=every, delay=1, leave=False
    ) as bar:
        yield bar.update
