"""Models as values: what notebooks, commands, evaluation and agents use. `load` and `save`; importing this is light."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from qwenjax.api.model import Model

__all__ = ["load", "save"]


def load(path: str | Path, mesh: "Mesh | None" = None, dtype: str | None = None, **config_overrides: Any) -> "Model":
    """The model at a path: a directory of the hubs (Qwen, Qwen2, Qwen3, Llama; GPTQ too), a .gguf, or a run of ours.

    Low-rank adapters, of a run or in a directory of PEFT, are merged into the model that they were trained on.

    Args:
      mesh: where parameters and batches live (`sharding.make_mesh`); None is the first device.
      dtype: 'float32' or 'bfloat16', of the parameters and of what is computed; None: float32 on CPUs, whose matmuls
        have no bfloat16, else bfloat16.
      config_overrides: fields of `config.ModelConfig`, typed as on a command line: `ntk=True, logn=False`, or
        `**{"rope_scaling.factor": 4}`.
    Raises:
      ValueError: nothing there that is read, a field that does not exist, or files that do not belong together.
    """
    import jax

    from qwenjax.api.checkpoint_path import detect
    from qwenjax.api.model import Model
    from qwenjax.config import Compute
    from qwenjax.interop.huggingface.load import param_shardings

    source = detect(path, config_overrides)
    platform = (mesh.devices.flat[0] if mesh is not None else jax.devices()[0]).platform
    dtype = dtype or ("float32" if platform == "cpu" else "bfloat16")
    compute = Compute(dtype=dtype, remat="none").resolved(platform, mesh.shape["tensor"] if mesh is not None else 1)
    tokenizer = source.tokenizer()
    params = source.params(None if mesh is None else param_shardings(source.config, mesh), dtype)
    return Model(source.config, params, tokenizer, compute, mesh, source.habits())


def save(model: "Model", directory: str | Path, layout: str = "qwen2", dtype: str | None = None) -> list[str]:
    """Writes a model for other programs: layout 'qwen2' (Qwen2, Qwen3 or Llama, as it is) or 'qwen' (first releases).

    Args:
      dtype: 'float32' or 'bfloat16' of what is written; None: the parameters'.
    Returns: a sentence for each thing that the layout cannot say.
    Raises:
      ValueError: see `interop.save.save_params`.
    """
    from qwenjax.common import progress
    from qwenjax.interop.huggingface.save import save_params, saved_bytes

    dtype = dtype or str(model.params["embed"].dtype)
    with progress.meter(f"writing {directory}", saved_bytes(model.config, layout, dtype), "B") as step:
        return save_params(
            model.config,
            model.params,
            directory,
            layout,
            dtype=dtype,
            tokenizer=model.tokenizer,
            chat=model.habits.chat,
            generation=model.habits.generation(model.tokenizer, layout, model.config),
            progress=step,
        )
