"""What `--model=PATH` means: found by looking at the files, described, and read when asked.

directory with config.json of the hubs     Qwen-v1, Qwen2, Qwen3 or Llama tensors; safetensors, .bin or GPTQ
FILE.gguf                                  llama, qwen, qwen2 or qwen3
directory with adapter_config.json         low-rank adapters of the PEFT library, and the model that they name
a run, its checkpoints/, or one of these   ours; in a bucket (gs://…), too

Adapters are merged into the model beneath them when the parameters are read.
"""

import base64
import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from qwenjax import checkpoint, config
from qwenjax.api.generation_defaults import GenerationDefaults
from qwenjax.common import progress, storage
from qwenjax.config import Experiment, Lora, ModelConfig
from qwenjax.config import overrides as fields
from qwenjax.interop import open_checkpoint, peft
from qwenjax.interop.hub_checkpoint import HubCheckpoint
from qwenjax.interop.huggingface.directory import KEPT, read_json
from qwenjax.interop.huggingface.load import load_params, param_shardings, total_bytes
from qwenjax.model import lora, reward_head, transformer
from qwenjax.tokenizer.gguf import tokenizer_of
from qwenjax.tokenizer.load import FILES, Tokenizer, load_tokenizer

# Fields of a ModelConfig that say which parameters there are
SHAPE = (
    *("vocab", "layers", "embed", "heads", "ffn", "kv", "head_dim", "qkv_bias", "qk_norm", "tie_embeddings"),
    *("gated", "norm"),
)


@dataclass(frozen=True)
class CheckpointPath:
    """A checkpoint that is known and not read yet.

    Attributes:
      path: of a run, the checkpoint that was chosen.
      config: of the model, with overrides.
      foreign: what interop opened, of a model that is whole; None for adapters and for a run of ours.
      meta: what was saved with a checkpoint of ours; {} for others.
      base: the model beneath low-rank adapters, of a run or of PEFT; None for a model that is whole.
    """

    path: Path
    config: ModelConfig
    foreign: HubCheckpoint | None
    meta: Mapping[str, Any]
    base: "CheckpointPath | None" = None

    @property
    def name(self) -> str:
        """What a file made of it may be called: of a run, its folder's."""
        run = self.path.parent.parent if self.meta and self.path.parent.name == "checkpoints" else self.path
        return run.stem if run.suffix == ".gguf" else run.name

    @property
    def experiment(self) -> Experiment | None:
        """Of a run of ours."""
        return config.from_dict(self.meta["experiment"]) if self.meta else None

    @functools.cached_property
    def dtype(self) -> str:
        """Of the stored embedding, as parameters can be written: what is neither of these two is read as float32."""
        if self.foreign is None:
            return "float32" if self.meta else self.base.dtype
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
        if self.meta:
            with tempfile.TemporaryDirectory() as folder:
                for name, data in self.meta["tokenizer"].items():
                    (Path(folder) / Path(name).name).write_bytes(base64.b64decode(data))
                return load_tokenizer(folder)
        if self.foreign and "gguf" in self.foreign.files:
            return tokenizer_of(self.foreign.files["gguf"], str(self.path))
        if any((self.path / name).is_file() for name in FILES):
            return load_tokenizer(self.path)
        return None if self.foreign else self.base._tokenizer()

    def habits(self) -> GenerationDefaults:
        """How the checkpoint's files say that it is used; of adapters, those of the model beneath say the rest."""
        if self.meta:
            return GenerationDefaults.of_run(self.meta)
        if self.foreign:
            return GenerationDefaults.of_files(self.foreign.files)
        own = {name: read_json(self.path / name) for name in KEPT if (self.path / name).is_file()}
        said, below = GenerationDefaults.of_files({"config.json": {}, **own}), self.base.habits()
        sampling = {**below.sampling, **said.sampling}
        return replace(below, chat=said.chat or below.chat, ends=said.ends | below.ends, sampling=sampling)

    def params(self, shardings: dict | None = None, dtype: str = "float32") -> dict:
        """The parameters, in their places (`interop.load.param_shardings`; None: the default device).

        Progress is on stderr. Raises ValueError for tensors that are not those of `config`, a damaged file, a reward
        model, or adapters of another model than lies beneath them now.
        """
        if self.foreign is not None:
            foreign = self.foreign._replace(config=self.config)
            with progress.meter(f"reading {self.path.name}", total_bytes(self.foreign), "B") as step:
                return load_params(foreign, shardings, jnp.dtype(dtype), step)
        if self.base is not None:
            adapter = self.adapter(shardings)
            return self._merged(self.config, adapter.trained, adapter.lora, shardings, dtype)
        self._check_writes()
        params = checkpoint.load(self.path, _placed(_shapes(self.config), shardings)).params
        return params if dtype == "float32" else jax.tree.map(lambda x: x.astype(dtype), params)

    def adapter(self, shardings: dict | None = None) -> peft.Adapter:
        """The low-rank adapters, and what was trained in full beside them; on every device of `shardings`.

        Its `base` is the path where the model beneath was found.

        Raises:
          ValueError: the model has none, or is a reward model; see `interop.peft.load_adapter` for others' adapters.
        """
        if self.base is None:
            raise ValueError(f"{self.path} has no low-rank adapters: it is a whole model")
        if not self.meta:
            return peft.load_adapter(self.path, self.config)._replace(base=str(self.base.path))
        self._check_writes()
        return peft.Adapter(self._trained(self.config, shardings), self.experiment.lora, str(self.base.path))

    def scorer(self, shardings: dict | None = None) -> tuple[dict, jax.Array]:
        """Of a reward model: parameters of the network without head, float32, adapters merged in; and weights [d].

        Raises:
          ValueError: it is none.
        """
        if not self.meta or self.experiment.task != "reward":
            raise ValueError(
                f"{self.path} is no reward model of ours; train one: python -m qwenjax.train --exp=tiny_rm "
                f"--set init_from={self.path}"
            )
        cfg = reward_head.headless(self.config)
        if self.base is not None:
            read = self._trained(cfg, shardings)
            return self._merged(cfg, read["backbone"], self.experiment.lora, shardings), read["reward"]
        wanted = {"backbone": _placed(_shapes(cfg), shardings), "reward": _placed(_reward_head(cfg), _whole(shardings))}
        read = checkpoint.load(self.path, wanted).params
        return read["backbone"], read["reward"]

    def _check_writes(self) -> None:
        """Raises ValueError for a reward model."""
        if self.experiment.task == "reward":
            raise ValueError(
                f"{self.path} is a reward model: it scores texts and writes none. Give a language model here, and this "
                "one where a reward model is asked for (rl.reward, --reward, --table=4)"
            )

    def _trained(self, cfg: ModelConfig, shardings: dict | None) -> dict:
        """The parameters in a checkpoint of a run that trained adapters; of a reward model, the head beside them."""
        run, shapes = self.experiment, _shapes(cfg)
        wanted: dict = {
            "params": {name: shapes[name] for name in run.lora.modules_to_save},
            "lora": jax.eval_shape(lambda: nn.meta.unbox(lora.init(cfg, run.lora, jax.random.key(0)))),
        }
        if run.task == "reward":
            wanted = {"backbone": wanted, "reward": _reward_head(cfg)}
        return checkpoint.load(self.path, _placed(wanted, _whole(shardings))).params

    def _merged(
        self, cfg: ModelConfig, trained: dict, how: Lora, shardings: dict | None, dtype: str = "float32"
    ) -> dict:
        """One tree of parameters of `cfg`: the model beneath, held as in training, with what was trained merged in."""
        below = self._beneath(cfg, how, shardings)
        known = self.meta.get("frozen", {}).get("base")
        if known and known != (now := checkpoint.fingerprint(_frozen(below, how))):
            raise ValueError(
                f"{self.experiment.init_from} is not the model that the adapters in {self.path} were trained on "
                f"(fingerprint {known} then, {now} now): put it back"
            )
        merge = jax.jit(_merge, static_argnums=(2, 3), out_shardings=shardings)
        return merge(trained, below, how, dtype)

    def _beneath(self, cfg: ModelConfig, how: Lora, shardings: dict | None) -> dict:
        """Parameters of the model beneath adapters on `cfg`: as trained on; under others', as stored."""
        dtype = "bfloat16" if how.base_dtype != "float32" else "float32" if self.meta else self.base.dtype
        if self.meta and self.experiment.task == "reward" and self.base.meta and self.base.experiment.task == "reward":
            return jax.tree.map(lambda x: x.astype(dtype), self.base.scorer(shardings)[0])
        places = None if shardings is None else param_shardings(self.config, _whole(shardings).mesh)
        params = replace(self.base, config=self.config).params(places, dtype)
        return {name: x for name, x in params.items() if name != "head" or not cfg.tie_embeddings}


def _shapes(cfg: ModelConfig) -> dict:
    """The parameters of a model, abstract."""
    return jax.eval_shape(lambda: nn.meta.unbox(transformer.init_params(cfg, jax.random.key(0))))


@functools.partial(jax.jit, static_argnums=1)
def _frozen(params: dict, how: Lora) -> dict:
    return lora.split(params, how)[1]


def _merge(trained: dict, below: dict, how: Lora, dtype: str) -> dict:
    merged = lora.merge(lora.variables(trained, lora.split(below, how)[1]), how)
    return jax.tree.map(lambda x: x.astype(dtype), merged)


def _reward_head(cfg: ModelConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((cfg.embed,), jnp.float32)


def _placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with places: a tree of them, one for all, or None for the default device."""
    if shardings is None or isinstance(shardings, Sharding):
        place = shardings or SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda x: place, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _whole(shardings: dict | None) -> Sharding | None:
    """A copy on each of the devices, for what is small."""
    return None if shardings is None else NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())


def detect(path: str | Path, overrides: Mapping[str, Any] | None = None) -> CheckpointPath:
    """What is at a path, with fields of its ModelConfig replaced.

    Raises:
      ValueError: nothing that is read, or overrides that do not fit.
    """
    place = storage.path(path)
    if _is_run(place):
        step = checkpoint.newest(place)
        meta = _meta(step)
        run, base = config.from_dict(meta["experiment"]), None
        if run.lora.rank:
            base = _open_base(run.init_from, step, "run this where it was trained, or link that model to this path")
        found = CheckpointPath(step, run.model, None, meta, base)
    elif (place / peft.CONFIG).is_file():
        file = place / peft.CONFIG
        name = str(read_json(file).get("base_model_name_or_path") or "")
        base = _open_base(name, place, f"write its path into base_model_name_or_path of {file}")
        found = CheckpointPath(place, base.config, None, {}, base)
    else:
        foreign = open_checkpoint(place)
        found = CheckpointPath(place, foreign.config, foreign, {})
    return replace(found, config=fields.override(found.config, dict(overrides or {})))


def _open_base(name: str, adapters: Path, advice: str) -> CheckpointPath:
    """The model beneath adapters: at the path `name`, or there as seen from their folder.

    Raises:
      ValueError: it is not there; with advice.
    """
    for place in (storage.path(name), adapters / name):
        if name and place.exists() and storage.absolute(place) != storage.absolute(adapters):
            return detect(place)
    raise ValueError(
        f"{adapters} holds low-rank adapters of {name or 'a model that is not named'}, and no model is there: {advice}"
    )


def start_from(
    path: str | Path, model: ModelConfig, shardings: dict | None = None, dtype: str = "float32"
) -> tuple[dict, Tokenizer | None, list[str]]:
    """Parameters for training a model of ours from any checkpoint, and its tokenizer.

    Returns: the parameters in their places; the tokenizer that lies with them; and a sentence for each field in which
      the two models compute differently (another rotary base or context, say), which may be meant.
    Raises:
      ValueError: the checkpoint's parameters have other shapes than the model's; the fields are named.
    """
    source = detect(path)
    differing = compare(source, model, path)
    return replace(source, config=model).params(shardings, dtype), source.tokenizer(), differing


def compare(source: CheckpointPath, model: ModelConfig, path: str | Path) -> list[str]:
    """A sentence for each field in which the model at a path and another compute differently.

    Raises:
      ValueError: they have parameters of other shapes; the fields are named.
    """
    other = [name for name in SHAPE if getattr(source.config, name) != getattr(model, name)]
    if other:
        listed = ", ".join(f"{name}={getattr(source.config, name)} instead of {getattr(model, name)}" for name in other)
        asked = " ".join(f"--set model.{name}={getattr(source.config, name)}" for name in _settable(other))
        raise ValueError(f"{path} is of another shape than the experiment's model: {listed}; use {asked}")
    return [
        f"{field.name}={getattr(source.config, field.name)} in {path}, {getattr(model, field.name)} here"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in (*SHAPE, "kv_heads", "head_dim")
        and getattr(source.config, field.name) != getattr(model, field.name)
    ]


def _settable(names: list[str]) -> list[str]:
    return [{"kv": "kv_heads", "head_size": "head_dim"}.get(name, name) for name in names]


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
