"""Models for notebooks, commands, evaluation and agents: `load` and `save`. Importing this loads no jax."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from qwenjax.api.model import Model

__all__ = ["load", "save"]


def load(path: str | Path, mesh: "Mesh | None" = None, dtype: str | None = None, **config_overrides: Any) -> "Model":
    """The model at a path: a directory of the hubs (Qwen, Qwen2, Qwen3, Llama; GPTQ too), a .gguf, or a run.

    Low-rank adapters, of a run or of PEFT, are merged into the model that they were trained on.

    Args:
      mesh: where parameters and batches live (`sharding.make_mesh`); None is the first device.
      dtype: 'float32' or 'bfloat16', of parameters and computation; None: float32 on CPUs, else bfloat16.
      config_overrides: fields of `config.ModelConfig`, typed as on a command line: `ntk=True, logn=False`, or
        `**{"rope_scaling.factor": 4}`.
    Raises:
      ValueError: nothing that can be read, a field that does not exist, or files that do not belong together.
    """
    import jax

    from qwenjax.api.checkpoint_path import detect
    from qwenjax.api.generation_defaults import GenerationDefaults
    from qwenjax.api.model import Model
    from qwenjax.api.parameters import read_params
    from qwenjax.config import Compute
    from qwenjax.interop.huggingface.load import param_shardings

    source = detect(path).override(config_overrides)
    platform = (mesh.devices.flat[0] if mesh is not None else jax.devices()[0]).platform
    dtype = dtype or ("float32" if platform == "cpu" else "bfloat16")
    compute = Compute(dtype=dtype, remat="none").resolved(platform, mesh.shape["tensor"] if mesh is not None else 1)
    tokenizer = source.tokenizer()
    params = read_params(source, None if mesh is None else param_shardings(source.config, mesh), dtype)
    model = Model(source.config, params, tokenizer, compute, mesh, GenerationDefaults.of(source))
    if source.hub_checkpoint and source.hub_checkpoint.files.get("config.json", {}).get("use_cache_quantization"):
        model.kv_cache = "int8_released"
    return model


def save(model: "Model", directory: str | Path, layout: str = "qwen2", dtype: str | None = None) -> list[str]:
    """Writes a model for other programs: layout 'qwen2' (Qwen2, Qwen3 or Llama) or 'qwen' (the first releases).

    Args:
      dtype: 'float32' or 'bfloat16' of the written tensors; None: as the parameters.
    Returns: a sentence for each thing that the layout cannot express.
    """
    from qwenjax.common import progress
    from qwenjax.interop.huggingface.save import save_params

    dtype = dtype or str(model.params["embed"].dtype)
    with progress.meter(f"writing {directory}", model.config.params * (2 if dtype == "bfloat16" else 4), "B") as step:
        return save_params(
            model.config,
            model.params,
            directory,
            layout,
            dtype=dtype,
            tokenizer=model.tokenizer,
            chat=model.generation_defaults.chat,
            generation=model.generation_defaults.generation_config(model.tokenizer, layout, model.config),
            progress=step,
        )
