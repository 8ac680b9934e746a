"""What `--model=PATH` means: found by looking at the files, described, and read when asked.

directory with config.json of the hubs     Qwen-v1, Qwen2, Qwen3 or Llama tensors; safetensors, .bin or GPTQ
FILE.gguf                                  llama, qwen, qwen2 or qwen3
a run, its checkpoints/, or one of these   ours; in a bucket (gs://…), too
"""

import base64
import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import linen as nn

from qwenjax import checkpoint, cli, config, fields, storage
from qwenjax.api.habits import Habits
from qwenjax.config import Experiment, ModelConfig
from qwenjax.interop import open_checkpoint
from qwenjax.interop.load import load_params, total_bytes
from qwenjax.interop.tensors import Foreign
from qwenjax.model import lora, reward, transformer
from qwenjax.text import FILES, Tokenizer, load_tokenizer
from qwenjax.text.gguf_vocab import tokenizer_of

# Fields of a ModelConfig that say which parameters there are
SHAPE = ("vocab", "layers", "embed", "heads", "ffn", "kv", "head_dim", "qkv_bias", "qk_norm", "tie_embeddings")


@dataclass(frozen=True)
class Source:
    """A checkpoint that is known and not read yet.

    Attributes:
      path: of a run, the checkpoint that was chosen.
      config: of the model, with overrides.
      foreign: what interop opened; None for a run of ours.
      meta: what was saved with a checkpoint of ours; {} for others.
    """

    path: Path
    config: ModelConfig
    foreign: Foreign | None
    meta: Mapping[str, Any]

    @cached_property
    def dtype(self) -> str:
        """Of the stored embedding, as parameters can be written: what is neither of these two is read as float32."""
        if self.foreign is None:
            return "float32"
        name = "transformer.wte.weight" if self.foreign.layout == "qwen" else "model.embed_tokens.weight"
        stored = self.foreign.tensors.get(name)
        return "bfloat16" if stored is not None and stored.dtype.name == "bfloat16" else "float32"

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies with the checkpoint, if one does.

        Raises:
          ValueError: it has more ids than the embedding has rows, or cannot be read.
        """
        found = self._tokenizer()
        if found is not None and found.size > self.config.vocab:
            raise ValueError(
                f"{self.path}: its tokenizer {found.name} has {found.size} ids, its embedding only {self.config.vocab} "
                "rows; they do not belong together"
            )
        return found

    def _tokenizer(self) -> Tokenizer | None:
        if self.foreign is None:
            with tempfile.TemporaryDirectory() as folder:
                for name, data in self.meta["tokenizer"].items():
                    (Path(folder) / Path(name).name).write_bytes(base64.b64decode(data))
                return load_tokenizer(folder)
        if "gguf" in self.foreign.files:
            return tokenizer_of(self.foreign.files["gguf"], str(self.path))
        there = any((self.path / name).is_file() for name in FILES)
        return load_tokenizer(self.path) if there else None

    def habits(self) -> Habits:
        """How the checkpoint's files say that it is used."""
        if self.foreign is None:
            return Habits.of_run(self.meta)
        return Habits.of_files(self.foreign.files)

    def params(self, shardings: dict | None = None, dtype: str = "float32") -> dict:
        """The parameters, in their places (`interop.load.param_shardings`; None: the default device).

        Progress is on stderr. Raises ValueError for tensors that are not those of `config`, or a damaged file.
        """
        if self.foreign is None:
            return self._restored(shardings, dtype)
        foreign = self.foreign._replace(config=self.config)
        with cli.meter(f"reading {self.path.name}", total_bytes(self.foreign), "B") as step:
            return load_params(foreign, shardings, jnp.dtype(dtype), step)

    @property
    def experiment(self) -> Experiment | None:
        """Of a run of ours."""
        return config.from_dict(self.meta["experiment"]) if self.meta else None

    def _restored(self, shardings: dict | None, dtype: str) -> dict:
        if self.experiment.task == "reward":
            raise ValueError(
                f"{self.path} is a reward model: it scores texts and writes none. Give a language model here, and this "
                "one where a reward model is asked for (rl.reward, --reward, --table=4)"
            )
        shapes = _shapes(self.config)
        if self.experiment.lora.rank:
            params = self._adapted(self.config, lambda trained: trained, shardings)
        else:
            params = checkpoint.load(self.path, _placed(shapes, shardings)).params
        return params if dtype == "float32" else jax.tree.map(lambda x: x.astype(dtype), params)

    def scorer(self, shardings: dict | None = None) -> tuple[dict, jax.Array]:
        """Of a reward model: parameters of the network without head, float32, adapters merged in; and weights [d].

        Raises:
          ValueError: it is none.
        """
        if self.foreign is not None or self.experiment.task != "reward":
            raise ValueError(
                f"{self.path} is no reward model of ours; train one: python -m qwenjax.train --exp=tiny_rm "
                f"--set init_from={self.path}"
            )
        cfg = reward.headless(self.config)
        head = {"reward": jax.ShapeDtypeStruct((cfg.embed,), jnp.float32)}
        if self.experiment.lora.rank:
            found: dict = {}
            params = self._adapted(cfg, lambda trained: {"backbone": trained, **_placed(head)}, shardings, found)
            return params, found["reward"]
        read = checkpoint.load(self.path, {"backbone": _placed(_shapes(cfg), shardings), **_placed(head)}).params
        return read["backbone"], read["reward"]

    def _adapted(self, cfg: ModelConfig, tree: Callable, shardings: dict | None, rest: dict | None = None) -> dict:
        """Full parameters of a run that trained adapters: what it started from, with these merged in.

        Args:
          tree: from the abstract trained parameters to the whole tree of the checkpoint. rest: takes what else it has.
        """
        run = self.experiment
        base = open_source(run.init_from)
        whole = "float32" if run.lora.base == "float32" else "bfloat16"
        if base.experiment is not None and base.experiment.task == "reward":
            params = jax.tree.map(lambda x: x.astype(whole), base.scorer(shardings)[0])
        else:
            params = replace(base, config=run.model).params(None if shardings is None else shardings, whole)
        if cfg.tie_embeddings:
            params.pop("head", None)
        trained, frozen = lora.split(params, run.lora)
        begun = checkpoint.fingerprint(frozen)
        if begun != (known := self.meta.get("frozen", {}).get("base", begun)):
            raise ValueError(
                f"{run.init_from} is not the model that the adapters in {self.path} were trained on (fingerprint "
                f"{known} then, {begun} now): put it back"
            )
        adapters = jax.eval_shape(lambda: nn.meta.unbox(lora.init(cfg, run.lora, jax.random.key(0))))
        wanted = tree({"params": _placed(jax.eval_shape(lambda: trained["params"])), "lora": _placed(adapters)})
        read = checkpoint.load(self.path, wanted).params
        if rest is not None:
            rest.update(read)
        return lora.merge(lora.variables(read.get("backbone", read), frozen), run.lora)


def _shapes(cfg: ModelConfig) -> dict:
    """The parameters of a model, abstract."""
    return jax.eval_shape(lambda: nn.meta.unbox(transformer.init_params(cfg, jax.random.key(0))))


def _placed(shapes: dict, shardings: dict | None = None) -> dict:
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda x: here, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def open_source(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Source:
    """What is at a path, with fields of its ModelConfig replaced.

    Raises:
      ValueError: nothing that is read, or overrides that do not fit.
    """
    place = storage.path(path)
    if _is_run(place):
        step = checkpoint.newest(place)
        meta = _meta(step)
        found = Source(step, config.from_dict(meta["experiment"]).model, None, meta)
    else:
        foreign = open_checkpoint(place)
        found = Source(place, foreign.config, foreign, {})
    return dataclasses.replace(found, config=fields.override(found.config, dict(overrides or {})))


def start_from(
    path: str | Path, model: ModelConfig, shardings: dict | None = None, dtype: str = "float32"
) -> tuple[dict, Tokenizer | None, list[str]]:
    """Parameters for training a model of ours from any checkpoint, and its tokenizer.

    Returns: the parameters in their places; the tokenizer that lies with them; and a sentence for each field in which
      the two models compute differently (another rotary base or context, say), which may be meant.
    Raises:
      ValueError: the checkpoint's parameters have other shapes than the model's; the fields are named.
    """
    source = open_source(path)
    other = [name for name in SHAPE if getattr(source.config, name) != getattr(model, name)]
    if other:
        listed = ", ".join(f"{name}={getattr(source.config, name)} instead of {getattr(model, name)}" for name in other)
        asked = " ".join(f"--set model.{name}={getattr(source.config, name)}" for name in _settable(other))
        raise ValueError(f"{path} is of another shape than the experiment's model: {listed}; use {asked}")
    differing = [
        f"{field.name}={getattr(source.config, field.name)} in {path}, {getattr(model, field.name)} here"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in (*SHAPE, "kv_heads", "head_width")
        and getattr(source.config, field.name) != getattr(model, field.name)
    ]
    params = dataclasses.replace(source, config=model).params(shardings, dtype)
    return params, source.tokenizer(), differing


def _settable(names: list[str]) -> list[str]:
    return [{"kv": "kv_heads", "head_dim": "head_width"}.get(name, name) for name in names]


def _is_run(place: Path) -> bool:
    """Whether a directory is a run of ours, its checkpoints, or one of these."""
    if (place / "meta").is_dir() or (place / "checkpoints").is_dir():
        return True
    return not place.suffix and any(child.name.isdigit() and child.is_dir() for child in storage.files(place))


def _meta(step: Path) -> dict[str, Any]:
    """What was saved with a checkpoint; `checkpoint.load` verifies it later."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(step / "meta")
    except Exception as error:  # whatever a broken file makes of the reader
        raise checkpoint.Damaged(step, f"its description cannot be read ({type(error).__name__})") from error
