"""What `--model=PATH` means (`options.MODEL`): the files at the path decide. Parameters are not read here.

`parameters.py` reads the parameters and merges adapters; `generation_defaults.py` says how the model is used.
"""

import base64
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from qwenjax import checkpoint, config
from qwenjax.common import storage
from qwenjax.config import Experiment, ModelConfig, overrides
from qwenjax.interop import HubCheckpoint, peft
from qwenjax.interop.gguf.read import open_gguf
from qwenjax.interop.huggingface.directory import open_directory
from qwenjax.tokenizer import FILES, Tokenizer, load_tokenizer
from qwenjax.tokenizer.gguf import tokenizer_of

# What of a ModelConfig decides which parameters there are, and of which shape
SHAPE = (
    *("vocab", "layers", "embed", "heads", "ffn", "kv", "head_size", "qkv_bias", "qk_norm", "tie_embeddings"),
    *("gated", "norm"),
)
# What a run may change of a model that it starts from; ADDED only where the model has none
EXTENSIONS, ADDED = ("context", "ntk", "logn"), ("rope_scaling", "windows")
SETTABLE = {"kv": "kv_heads", "head_size": "head_dim"}  # fields behind the properties in SHAPE


@dataclass(frozen=True)
class CheckpointPath:
    """A checkpoint that was detected and not read yet."""

    path: Path  # of a run, the checkpoint that was chosen
    config: ModelConfig
    hub_checkpoint: HubCheckpoint | None  # what interop opened; None for adapters of PEFT and for a run
    meta: Mapping[str, Any]  # what was saved with a checkpoint of a run; {} for others
    base: "CheckpointPath | None" = None  # of low-rank adapters, of a run or of PEFT

    @property
    def name(self) -> str:
        """What a file made from it may be called: for a run, the name of its folder."""
        run = self.path.parent.parent if self.meta and self.path.parent.name == "checkpoints" else self.path
        return run.stem if run.suffix.lower() == ".gguf" else run.name

    @functools.cached_property
    def experiment(self) -> Experiment | None:
        """The experiment of a run; None for other checkpoints."""
        return config.from_dict(self.meta["experiment"]) if self.meta else None

    @property
    def scores(self) -> bool:
        """Whether it is a reward model of a run."""
        return self.experiment is not None and self.experiment.task == "reward"

    @property
    def dtype(self) -> str:
        """Dtype of the stored embedding, as parameters can be written: bfloat16, or float32 for anything else."""
        if self.hub_checkpoint is None:
            return "float32" if self.meta else self.base.dtype
        name = "transformer.wte.weight" if self.hub_checkpoint.layout == "qwen" else "model.embed_tokens.weight"
        stored = self.hub_checkpoint.tensors.get(name)
        return "bfloat16" if stored is not None and stored.dtype.name == "bfloat16" else "float32"

    def override(self, settings: Mapping[str, Any]) -> "CheckpointPath":
        """The same checkpoint with fields of its config changed: FIELD -> value, typed as on a command line."""
        return replace(self, config=overrides.override(self.config, dict(settings)))

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the checkpoint, or None; adapters without one have that of their base model.

        Raises ValueError if it cannot be read, or has more ids than the embedding has rows.
        """
        tokenizer = self._read_tokenizer()
        if tokenizer is not None and tokenizer.ordinary_size > self.config.vocab:
            raise ValueError(
                f"{self.path}: its tokenizer {tokenizer.name} has {tokenizer.size} ids, its embedding only "
                f"{self.config.vocab} rows; they do not belong together"
            )
        return tokenizer

    def _read_tokenizer(self) -> Tokenizer | None:
        if self.meta:
            with tempfile.TemporaryDirectory() as folder:
                for name, data in self.meta["tokenizer"].items():
                    (Path(folder) / Path(name).name).write_bytes(base64.b64decode(data))
                return load_tokenizer(folder)
        if self.hub_checkpoint and "gguf" in self.hub_checkpoint.files:
            return tokenizer_of(self.hub_checkpoint.files["gguf"], str(self.path))
        if any((self.path / name).is_file() for name in FILES):
            return load_tokenizer(self.path)
        return None if self.hub_checkpoint else self.base._read_tokenizer()


def detect(path: str | Path) -> CheckpointPath:
    """What is at a path. Raises ValueError for nothing that can be read."""
    path = storage.path(path)
    if _is_run(path):
        return _detect_run(checkpoint.newest(path))
    if (path / peft.CONFIG).is_file():
        return _detect_adapters(path)
    is_gguf = path.suffix.lower() == ".gguf"
    if not is_gguf and not path.is_dir():
        what = "give the directory it lies in" if path.is_file() else "nothing is there"
        raise ValueError(f"no checkpoint at {path}: wanted a directory with config.json or a .gguf file; {what}")
    hub_checkpoint = open_gguf(path) if is_gguf else open_directory(path)
    return CheckpointPath(path, hub_checkpoint.config, hub_checkpoint, {})


def _is_run(path: Path) -> bool:
    """Whether a directory is a run, its checkpoints, or one of these."""
    if (path / "config.json").is_file() and "model_type" in storage.read_json(path / "config.json"):
        return False  # of a hub, whatever folders lie beside it; config.json of a run is an experiment
    if (path / "meta").is_dir() or (path / "checkpoints").is_dir():
        return True
    return not path.suffix and any(child.name.isdigit() and child.is_dir() for child in storage.files(path))


def _detect_run(step: Path) -> CheckpointPath:
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta = reader.restore(step / "meta")  # `checkpoint.load` verifies it later
    except Exception as error:  # a broken file raises anything
        why = f"its description cannot be read ({type(error).__name__})"
        raise checkpoint.Damaged(f"{step} is damaged: {why}") from error
    experiment, base = config.from_dict(meta["experiment"]), None
    if experiment.lora.rank:
        advice = "run this where it was trained, or link that model to this path"
        base = _detect_base(experiment.init_from, step, advice)
    return CheckpointPath(step, experiment.model, None, meta, base)


def _detect_adapters(folder: Path) -> CheckpointPath:
    file = folder / peft.CONFIG
    name = str(storage.read_json(file).get("base_model_name_or_path") or "")
    base = _detect_base(name, folder, f"write its path into base_model_name_or_path of {file}")
    return CheckpointPath(folder, base.config, None, {}, base)


def _detect_base(name: str, adapters: Path, advice: str) -> CheckpointPath:
    """The base model of adapters: at the path `name`, or at this path as seen from their folder."""
    for path in (storage.path(name), adapters / name):
        if name and path.exists() and storage.absolute(path) != storage.absolute(adapters):
            return detect(path)
    raise ValueError(
        f"{adapters} holds low-rank adapters of {name or 'a model that is not named'}, and no model is there: {advice}"
    )


def compare(source: CheckpointPath, model: ModelConfig, path: str | Path) -> list[str]:
    """A sentence for each way in which a model is to extend the one at a path (context, ntk, …).

    Raises:
      ValueError: they differ in what is a property of the weights; all such fields are named.
    """
    ours, theirs = source.config, model
    differing = [name for name in (*SHAPE, *vars(ours)) if getattr(ours, name) != getattr(theirs, name)]
    differing = [name for name in dict.fromkeys(differing) if name not in SETTABLE.values()]
    extended = [name for name in differing if name in EXTENSIONS or (name in ADDED and not _scales(ours, name))]
    if wrong := [name for name in differing if name not in extended]:
        listed = ", ".join(f"{name}={getattr(ours, name)} instead of {getattr(theirs, name)}" for name in wrong)
        raise ValueError(
            f"{path} holds another model than the experiment's: {listed}; use --set model=init_from, which takes "
            "all of it from there"
        )
    return [f"{name}={getattr(ours, name)} in {path}, {getattr(theirs, name)} here" for name in extended]


def _scales(model: ModelConfig, name: str) -> bool:
    """Whether the weights were trained with rope_scaling or windows."""
    return bool(model.windows) if name == "windows" else model.rope_scaling.kind != "none"
