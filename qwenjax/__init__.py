"""qwenjax: the whole system of the Qwen Technical Report in JAX. Importing it loads no jax; attributes load on use."""

import importlib

__version__ = "0.1.0"

_HOME = {
    "experiment": "qwenjax.config.lookup",
    "load": "qwenjax.api",
    "save": "qwenjax.api",
    "load_tokenizer": "qwenjax.tokenizer",
    "fit": "qwenjax.train.loop",
    "sweep": "qwenjax.sweeps",
    "evaluate": "qwenjax.eval.task",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'qwenjax' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}")


def __dir__():
    return sorted(__all__)
