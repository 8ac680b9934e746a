"""This process and its helpers: CPU cores, and what libraries may log."""

import logging
import os


def cores() -> int:
    """CPU cores that this process may use; containers and schedulers often grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_logs(level: int = 2) -> None:
    """Keeps the logs of libraries out of a command's output; call it before jax is imported.

    Args:
      level: of XLA and TensorFlow, 2 hides warnings and 3 also errors. TF_CPP_MIN_LOG_LEVEL has priority.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(level))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs stack traces of errors that it also raises
