"""This process and its helpers: CPU cores, what libraries may log, freed memory, and pools of processes."""

import ctypes
import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any


def cores() -> int:
    """CPU cores that this process may use; containers and schedulers often grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_logs(level: int = 2) -> None:
    """Keeps the logs of libraries out of a command's output (3: errors, too); call it before jax is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(level))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs stack traces of errors that it also raises


@contextmanager
def worker_pool(count: int, start: Callable[..., Any], *arguments: Any) -> Iterator[Callable[..., Future]]:
    """Processes that each make one worker, `start(*arguments)`, so that what a worker holds is sent only once.

    A pool of one is a thread of this process. Processes end with this one, whatever kills it, and leave Ctrl-C to it.

    Yields:
      submit(function, *more): a Future of function(worker, *more).
    Raises:
      ChildProcessError: a process died.
    """
    if count == 1:
        worker, pool = start(*arguments), ThreadPoolExecutor(1)
    else:
        # spawn: a fork of a process whose jax threads hold locks would hang
        context = multiprocessing.get_context("spawn")
        worker, pool = None, ProcessPoolExecutor(count, context, _start_process, (start, arguments))

    def submit(function: Callable, *more: Any) -> Future:
        if count == 1:
            return pool.submit(function, worker, *more)
        with without_main():  # this may start a process
            return pool.submit(_call, function, *more)

    try:
        yield submit
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process died, perhaps out of memory (use fewer workers); what is finished is kept, run again to "
            "resume"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def without_main() -> Iterator[None]:
    """A process that is spawned within does not run the calling script again, which would call this again."""
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


_worker: Any = None  # of a pool's process


def _start_process(start: Callable, arguments: tuple) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    _worker = start(*arguments)


def _call(function: Callable, *more: Any) -> Any:
    return function(_worker, *more)


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, for the next step to reuse. Call it before jax starts its threads.

    XLA allocates the buffers of every step anew on CPU, and glibc returns blocks of that size to the kernel at once: a
    fifth of the quickstart's time. After this call all come from a heap that never shrinks. Does nothing without glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_max, arena_max = ctypes.CDLL(None).mallopt, -1, -4, -8  # of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # as size_t: no threshold
        mallopt(arena_max, 1)  # arenas of other threads cannot hold a large block; it would be mapped after all
