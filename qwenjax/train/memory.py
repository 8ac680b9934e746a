"""The C allocator's part in a step's time."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # names and numbers of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, for the next step to take. Call it before jax makes its threads.

    XLA allocates a step's buffers anew on CPU. Blocks that large glibc takes from the kernel and gives back at once,
    so every step faults all its pages in again, zeroed: a fifth of the quickstart's time. Here all blocks come from
    one heap that never shrinks, and the process stays as large as its largest moment. Only glibc is told.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)  # as size_t: no threshold
    mallopt(ARENA_MAX, 1)  # other threads' arenas cannot hold a large block; it would be mapped after all
