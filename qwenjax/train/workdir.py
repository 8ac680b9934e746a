"""Where a run lives: the one place that turns what the user said into a path. No jax, so that a parent can ask, too."""

from pathlib import Path

from qwenjax.common import storage
from qwenjax.config import Experiment


def locate(experiment: Experiment, said: Path | str | None) -> Path:
    """The workdir of a run, on a disk or in a bucket: what was said, else runs/NAME.

    Raises:
      ValueError: another kind of store, or the library for buckets is missing.
    """
    return storage.path(said or f"runs/{experiment.name}")
