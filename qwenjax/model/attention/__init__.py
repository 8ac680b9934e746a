"""Attention: one contract, three backends.

Training on packed rows, prefill and decoding with a cache are the same call: positions and segments carry the
difference. A backend is a file with `attend`, which passes tests/model/test_attention.py; a kernel also has `cannot`,
which says why it cannot do a call:

  backend  on    takes                                                    the backward pass keeps, for q [b t n h]
  xla      any   everything: the reference                                scores [b n t s]
  splash   TPU   t (each chunk of it) and h multiples of 128; t may be    the result and a float32 per query and head
                 split over devices; no dropout, no cache
  cudnn    GPU   bfloat16, t even, h up to 128; no dropout, no cache      the same, and for packed rows a mask [b 1 t t]
"""

import importlib
from collections.abc import Mapping
from types import ModuleType

import jax

from qwenjax.config import Compute, Experiment

BACKENDS = ("xla", "splash", "cudnn")
KERNELS = {"tpu": "splash", "gpu": "cudnn"}  # by platform, what 'auto' prefers to xla


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_pos: jax.Array,
    k_pos: jax.Array,
    q_segment: jax.Array | None = None,
    k_segment: jax.Array | None = None,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
    backend: str = "xla",
    **options,
) -> jax.Array:
    """Causal softmax attention over the positions a query may see, scaled by 1/sqrt(h).

    A query sees a key of its own segment that is not later and, with a window, less than `window` positions back.

    Args:
      q: [b t n h], rotary applied. k, v: [b s k h] with n a multiple of k; s > t when a cache is read.
      q_pos: [b t] int32; -1 marks padding. k_pos: [b s] int32; -1 marks an empty slot. For a kernel the two are the
        same array.
      q_segment, k_segment: [b t], [b s] int32, or None when every row is one document.
      dropout, rng: probability of dropping an attention weight, and the key to draw with.
      options: of the backend's own `attend`; they let tests run a kernel on any platform.
    Returns: [b t n h] in v's dtype; 0 where a query sees no key. Scores and softmax are float32.
    Raises:
      ValueError: an unknown backend, or one that cannot do this call.
    """
    if backend not in BACKENDS:
        raise ValueError(f"no attention backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend != "xla" and (dropout or q_pos is not k_pos):
        lacks = "has no dropout" if dropout else "is for whole rows, not for a cache"
        raise ValueError(f"attention backend {backend} {lacks}; use compute.attention=xla")
    return _module(backend).attend(q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng, **options)


def resolve(experiment: Experiment, platform: str, mesh: Mapping[str, int]) -> Compute:
    """The experiment's `compute` with every 'auto' replaced: the kernel of the platform, if it can do the run.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'. mesh: sizes by axis.
    """
    compute, model, kernel = experiment.compute, experiment.model, KERNELS.get(platform)
    # one kernel runs in all layers, so they need one window; and no kernel splits a KV head over devices
    able = len(set(model.windows)) < 2 and model.kv % mesh["tensor"] == 0 and not experiment.dropout
    size = experiment.data.seq_len, model.head_size
    if not (kernel and able) or _module(kernel).cannot(*size, compute.dtype, mesh["context"]):
        kernel = "xla"
    return compute.resolved(platform, mesh["tensor"], kernel)


def _module(backend: str) -> ModuleType:
    """Imported when needed, because the kernels take as long to import as the rest of the model."""
    return importlib.import_module(f"qwenjax.model.attention.{backend}")
