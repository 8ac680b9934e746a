"""Everything an experiment fills in: frozen dataclasses, checked at construction, sizes as data.

No jax, no files: this module loads in milliseconds, so `--help` and `--print-config` are instant. Sizes are those of
the report's Table 1 and the released checkpoints; recipe defaults are the pretraining recipe of report §2.4.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwenjax import fields

REMAT_POLICIES = ("none", "matmuls", "attention", "attn_out", "full")
SCHEDULES = ("cosine", "linear", "wsd", "constant")
TASKS = ("pretrain",)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    _check(value in known, f"{field}={value!r} is unknown; known: {', '.join(known)}.{fields.suggest(value, known)}")


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies changed for good, for texts longer than `original`, as later Qwens use it."""

    kind: str = "none"  # none | linear (position interpolation, arXiv 2306.15595) | yarn (arXiv 2309.00071)
    factor: float = 1.0
    original: int = 0  # yarn: the context before scaling; 0: model.context
    beta_fast: float = 32.0  # yarn: frequencies of more turns than this in `original` stay
    beta_slow: float = 1.0  # yarn: those of fewer turns are divided by the factor

    def __post_init__(self):
        _one_of("model.rope_scaling.kind", self.kind, ("none", "linear", "yarn"))
        _check(self.factor >= 1, f"model.rope_scaling.factor={self.factor} must be at least 1")
        _check(self.beta_fast > self.beta_slow > 0, "model.rope_scaling: wanted beta_fast > beta_slow > 0")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder (report §2.3). The defaults are Qwen-1.8B; Qwen1.5/2/3 and Llama are other values."""

    vocab: int = 151_936  # embedding rows, padding included (the tokenizer has 151,851 ids)
    layers: int = 24
    embed: int = 2048
    heads: int = 16
    ffn: int = 5504  # the real width; config.json of the releases stores twice this
    kv_heads: int = 0  # 0: as many as heads (all of Qwen-1); see `kv`
    head_width: int = 0  # 0: embed / heads; see `head_dim`
    context: int = 2048  # training length T; also what context extension measures lengths against
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False  # RMSNorm over each query and key head (Qwen3)
    tie_embeddings: bool = False
    rope_scaling: RopeScaling = RopeScaling()
    # Beyond `context`, when the model reads and not when it trains (report §2.3.2): each sequence by its own length
    ntk: bool = False  # dynamic NTK-aware interpolation of the rotary base
    logn: bool = False  # queries behind `context` scaled by log_context(position + 1)
    windows: tuple[int, ...] = ()  # positions that each layer sees back, 0: all; (): all in every layer

    def __post_init__(self):
        _check(
            not self.windows or (len(self.windows) == self.layers and min(self.windows) >= 0),
            f"model.windows={self.windows}: wanted one for each of {self.layers} layers, 0 or more",
        )
        for name in ("vocab", "layers", "embed", "heads", "ffn", "context"):
            _check(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} must be positive")
        if not self.head_width:
            _check(
                self.embed % self.heads == 0,
                f"model.embed={self.embed} is not a multiple of model.heads={self.heads}; set model.head_width",
            )
        _check(self.head_dim % 2 == 0, f"rotary embedding needs an even head width, got {self.head_dim}")
        _check(
            self.heads % self.kv == 0,
            f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv}: a KV head serves a whole group",
        )
        _check(self.rope_base > 0 and self.norm_eps > 0, "model.rope_base and model.norm_eps must be positive")
        _check(not self.ntk or self.head_dim > 2, "model.ntk raises the rotary base to h/(h-2): heads wider than 2")
        _check(not self.logn or self.context > 1, "model.logn takes logarithms to the base model.context: 2 or more")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.head_width or self.embed // self.heads

    @property
    def kv(self) -> int:
        """Key/value heads in effect."""
        return self.kv_heads or self.heads

    @property
    def embedding_params(self) -> int:
        """Parameters of the input and output embeddings."""
        return self.vocab * self.embed * (1 if self.tie_embeddings else 2)

    @property
    def params(self) -> int:
        """Exact parameter count (spec: 2Vh + L(4h² + 3h + 3hf + 2h) + h for Qwen-1)."""
        q, kv = self.heads * self.head_dim, self.kv * self.head_dim
        layer = self.embed * (2 * q + 2 * kv) + 3 * self.embed * self.ffn + 2 * self.embed
        layer += (q + 2 * kv) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        return self.embedding_params + self.layers * layer + self.embed

    def flops_per_token(self, length: int) -> int:
        """Matmul FLOPs to train on one token, forward and backward, in sequences of `length`.

        6 per matmul parameter (the input embedding is a lookup) plus causal attention: two products of
        2·heads·head_dim·length/2 FLOPs per layer, three times over.
        """
        matmul = self.params - self.vocab * self.embed * (0 if self.tie_embeddings else 1)
        return 6 * matmul + 6 * self.layers * self.heads * self.head_dim * length


def doubling_windows(context: int, layers: int, every: int = 4) -> tuple[int, ...]:
    """`model.windows`: lower layers, more sensitive to length (report §2.3.2), see less: T, then 2T, 4T, …

    The report has no table; its authors' example doubles every four layers from the training length (spec §17).
    """
    return tuple(context << (layer // every) for layer in range(layers))


QWEN_1B8 = ModelConfig()
QWEN_7B = replace(QWEN_1B8, layers=32, embed=4096, heads=32, ffn=11008)
QWEN_14B = replace(QWEN_1B8, vocab=152_064, layers=40, embed=5120, heads=40, ffn=13696)
QWEN_72B = replace(  # not in the report; as released (spec §3.1)
    QWEN_1B8, vocab=152_064, layers=80, embed=8192, heads=64, ffn=24576, rope_base=1e6, context=32_768
)


@dataclass(frozen=True)
class Compute:
    """How the same mathematics is computed: dtype, recomputation, kernels. Changes speed and memory, not meaning."""

    dtype: str = "bfloat16"  # activations and matmul operands; master parameters and optimizer are float32
    remat: str = "full"  # what backward keeps of a layer, most first: none | matmuls | attention | attn_out | full
    scan: bool = True  # scan over layers (compile time independent of depth) or unrolled
    attention: str = "auto"  # xla | splash (TPU) | cudnn (GPU); auto: the fastest that can do what the run asks for
    fuse: str = (
        "auto"  # one matmul per group of projections (yes) or one each (no); auto: yes on CPU without tensor axis
    )
    loss_tokens: int = 2048  # tokens per device whose logits exist at one time

    def __post_init__(self):
        _one_of("compute.dtype", self.dtype, ("bfloat16", "float32"))
        _one_of("compute.remat", self.remat, REMAT_POLICIES)
        _one_of("compute.attention", self.attention, ("auto", "xla", "splash", "cudnn"))
        _one_of("compute.fuse", self.fuse, ("auto", "yes", "no"))
        _check(self.loss_tokens > 0, "compute.loss_tokens must be positive")

    def resolved(self, platform: str, tensor: int, attention: str = "xla") -> "Compute":
        """The same choices with every 'auto' decided.

        Args:
          platform: 'cpu', 'gpu' or 'tpu'. tensor: size of the mesh axis.
          attention: the backend that 'auto' stands for; `Experiment.compute_on` knows which can do the run.
        """
        fuse = self.fuse if self.fuse != "auto" else ("yes" if platform == "cpu" and tensor == 1 else "no")
        return replace(self, attention=attention if self.attention == "auto" else self.attention, fuse=fuse)


@dataclass(frozen=True)
class MeshShape:
    """Devices per mesh axis. -1 takes what the others leave; see `sizes` for when both data and fsdp are -1."""

    data: int = -1  # replicas of the parameters; several slices are replicas of each other
    fsdp: int = -1  # parameters, gradients and optimizer are split over this axis, and so is the batch
    tensor: int = 1  # heads, ffn and vocabulary are split over this axis
    context: int = 1  # positions are split over this axis

    def __post_init__(self):
        _check(all(n == -1 or n > 0 for n in self._asked), f"mesh axes must be positive or -1, got {self}")
        _check(
            self._asked.count(-1) <= 1 or (self.data == self.fsdp == -1 and min(self.tensor, self.context) > 0),
            f"only one mesh axis may be -1, or data and fsdp together, got {self}",
        )

    @property
    def _asked(self) -> tuple[int, ...]:
        return dataclasses.astuple(self)

    def sizes(self, devices: int, embed: int, slices: int = 1) -> dict[str, int]:
        """Sizes by axis for so many devices, in equal slices.

        With data and fsdp both -1, fsdp is as large as can be: within a slice, and with multiples of 8 of the
        parameters' `embed` rows on each device. A TPU holds arrays in tiles of 8 rows; with 20 rows instead of 40
        every product of a 14B step takes a fifth longer (compiler's model, v5e-256). data takes the rest.

        Raises:
          ValueError: the axes do not multiply to the number of devices, or slices would share parameters.
        """
        fixed = math.prod(n for n in self._asked if n != -1)
        rest, uneven = divmod(devices, fixed)
        asked = " x ".join(f"{f.name}={n}" for f, n in zip(dataclasses.fields(self), self._asked))
        if uneven or (-1 not in self._asked and rest != 1):
            raise ValueError(
                f"mesh {asked} does not fit {devices} device{'s' * (devices > 1)}; "
                "axes must multiply to the device count, one may be -1 (--set mesh.fsdp=-1)"
            )
        sizes = dataclasses.asdict(self)
        if self.data == self.fsdp == -1:
            whole = rest // slices  # of one slice
            even = [n for n in range(1, whole + 1) if whole % n == 0 and embed % (8 * n) == 0]
            sizes["fsdp"] = max(even, default=1)
            rest //= sizes["fsdp"]
        sizes = {axis: rest if n == -1 else n for axis, n in sizes.items()}
        if sizes["data"] % slices:
            raise ValueError(
                f"mesh {asked} has data={sizes['data']}, which {slices} slices cannot share: between slices only "
                f"whole replicas; use a multiple (--set mesh.data={slices} --set mesh.fsdp=-1)"
            )
        return sizes


@dataclass(frozen=True)
class AdamW:
    """Optimizer and schedule; the defaults are the report's (§2.4; warm-up, decay and clip from the tech memo)."""

    peak: float = 3e-4
    schedule: str = "cosine"  # cosine | linear | wsd (warm-up, stable, decay) | constant; all start with the warm-up
    warmup: int = 2000
    floor: float = 0.1  # last learning rate as a fraction of the peak
    cooldown: float = 0.2  # wsd: the last fraction of the steps decays
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    decay: float = 0.1  # on matrices only
    clip: float = 1.0  # global gradient norm

    def __post_init__(self):
        _check(self.peak > 0, f"optim.peak={self.peak} must be positive")
        _one_of("optim.schedule", self.schedule, SCHEDULES)
        _check(self.warmup >= 0, f"optim.warmup={self.warmup} must not be negative")
        _check(0 <= self.floor <= 1 and 0 < self.cooldown <= 1, "optim.floor and optim.cooldown are fractions of 1")
        _check(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"optim betas must lie in [0, 1), got {self.b1}, {self.b2}")
        _check(self.clip > 0, f"optim.clip={self.clip} must be positive")


@dataclass(frozen=True)
class Source:
    """One member of the data mixture: a directory of token shards, or text from which they are made once.

    Everything after `weight` says how text is read.
    """

    text: str = ""  # a file, a folder, 'python-stdlib', 'tfds:NAME@SPLIT' or 'hf:OWNER/NAME@SPLIT'; see data.sources
    shards: str = ""  # a directory written by `python -m qwenjax.data tokenize`
    weight: float = 1.0  # share of the rows, relative to the other sources
    column: tuple[str, ...] = ("text",)  # fields of a row that make up its document; absent and empty ones are left out
    join: str = "\n\n"  # between those fields, and between the rows of a group
    group: str = ""  # consecutive rows with the same value in this field are one document: the pages of a book
    include: tuple[str, ...] = ()  # of a folder, only files whose path inside it fits one of these; * also crosses /
    exclude: tuple[str, ...] = ()  # and none whose path fits one of these
    limit: int = 0  # bytes of text, about: a fixed sample, spread over the whole source; 0: all of it

    def __post_init__(self):
        _check(not (self.text and self.shards), "a source has either text or shards, not both")
        _check(self.weight > 0, f"source weight {self.weight} must be positive; leave the source out instead")
        for name in ("column", "include", "exclude"):
            value = getattr(self, name)
            _check(isinstance(value, tuple) and all(value), f"source {name}={value!r}: wanted a tuple of names")
        _check(bool(self.column), "a source needs the name of at least one column")
        _check(self.limit >= 0, f"source limit={self.limit} must not be negative; 0 reads all of it")
        _check(not (self.shards and self.reading), f"{list(self.reading)} are about text, but the source has shards")

    @property
    def reading(self) -> dict[str, Any]:
        """The options of reading text that are not at their defaults: with the text, what its shards depend on."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.default != getattr(self, f.name)}
        return {name: value for name, value in mine.items() if name not in ("text", "shards", "weight")}


@dataclass(frozen=True)
class Data:
    """What the model reads, in rows of `length` tokens."""

    sources: tuple[Source, ...] = ()
    tokenizer: str = "qwen"  # 'qwen', a .tiktoken or .model file, or 'train:SIZE': sentencepiece BPE made from the text
    length: int = 2048
    batch: int = 2048  # sequences per step, over all devices; 2048 x 2048 = the report's 4M tokens
    isolate: bool = False  # documents packed into one row see only themselves; the report's plain packing is False
    eval_tokens: int = 1 << 20  # held-out tokens read by an evaluation, at most

    def __post_init__(self):
        _check(self.length > 1, f"data.length={self.length} must be at least 2")
        _check(self.batch > 0 and self.eval_tokens > 0, "data.batch and data.eval_tokens must be positive")


@dataclass(frozen=True)
class Recovery:
    """What a run does when loss or gradient norm leap out of their recent range: leave the batch out, then rewind.

    Off by default, so that a small run shows its troubles; one of months needs it. What is usual is the median of the
    last steps, a leap is measured in their (robust) standard deviations.
    """

    deviations: float = 0.0  # beyond so many a batch is left out; 8 is far outside noise. 0: off, and NaN ends the run
    window: int = 128  # steps that say what is usual; until there are so many, only what is not finite is left out
    spikes: int = 3  # so many leaps …
    among: int = 10  # … in so many batches: back to the checkpoint before them, and on behind their rows
    rewinds: int = 3  # in one place, each a checkpoint further back; then the run stops

    def __post_init__(self):
        _check(self.deviations >= 0, f"recovery.deviations={self.deviations} must not be negative; 0: off")
        _check(self.window > 1, f"recovery.window={self.window} must be at least 2")
        _check(0 < self.spikes <= self.among, "recovery.spikes must be 1 to recovery.among")
        _check(self.rewinds >= 0, f"recovery.rewinds={self.rewinds} must not be negative")


@dataclass(frozen=True)
class Experiment:
    """One run: the same value trains on a laptop, is compiled for a pod by `plan`, and runs there."""

    name: str
    model: ModelConfig
    data: Data
    steps: int
    task: str = "pretrain"
    optim: AdamW = field(default_factory=AdamW)
    recovery: Recovery = field(default_factory=Recovery)
    compute: Compute = field(default_factory=Compute)
    mesh: MeshShape = field(default_factory=MeshShape)
    accumulate: int = 1  # micro-steps per optimizer step; the batch is split, the result is the same
    dropout: float = 0.0  # on the embeddings and the attention probabilities
    seed: int = 0
    init_from: str = ""  # a run or checkpoint whose parameters this one starts from, with fresh optimizer and schedule
    log_every: int = 10
    eval_every: int = 1000  # 0: only at the end
    sample_every: int = 0  # 0: only at the end; texts continue `prompts`
    save_every: int = 1000
    keep: int = 3  # newest checkpoints kept
    keep_every: int = 0  # checkpoints at multiples of this many steps are kept for good; 0: none
    prompts: tuple[str, ...] = ()

    def __post_init__(self):
        _one_of("task", self.task, TASKS)
        _check(self.steps > 0, f"steps={self.steps} must be positive")
        _check(
            self.accumulate > 0 and self.data.batch % self.accumulate == 0,
            f"data.batch={self.data.batch} does not divide into accumulate={self.accumulate} micro-steps",
        )
        _check(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        for name in ("log_every", "save_every", "keep"):
            _check(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("eval_every", "sample_every", "keep_every"):
            _check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        _check(
            self.data.length <= self.model.context,
            f"data.length={self.data.length} exceeds model.context={self.model.context}: "
            "context extension is for inference; raise model.context to train longer",
        )

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch * self.data.length

    def compute_on(self, platform: str, mesh: Mapping[str, int]) -> Compute:
        """`compute` with every 'auto' decided for a platform ('cpu', 'gpu', 'tpu') and sizes of mesh axes."""
        width, length, context = self.model.head_dim, self.data.length, mesh["context"]
        chunks = 1 if context == 1 else 2 * context  # model/zigzag.py
        whole = not self.dropout and self.model.kv % mesh["tensor"] == 0  # no kernel drops, or splits a KV head
        whole = whole and len(set(self.model.windows)) < 2  # and all layers run the same one
        splash = whole and width % 128 == 0 and length % (128 * chunks) == 0
        cudnn = whole and width % 8 == 0 and width <= 128 and length % 2 == 0 and context == 1
        able = {"tpu": splash, "gpu": cudnn and self.compute.dtype == "bfloat16"}
        kernel = {"tpu": "splash", "gpu": "cudnn"}[platform] if able.get(platform) else "xla"
        return self.compute.resolved(platform, mesh["tensor"], kernel)


def to_dict(experiment: Experiment) -> dict:
    """Plain JSON values: what a run's config.json holds."""
    return dataclasses.asdict(experiment)


def from_dict(values: dict) -> Experiment:
    """The inverse of `to_dict`, typed and checked.

    Raises:
      ValueError: naming the field that is unknown, missing or of the wrong type.
    """
    return fields.from_dict(values, Experiment)
