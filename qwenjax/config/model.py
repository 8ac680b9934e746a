"""The shape of the decoder, and the sizes that were released (report Table 1)."""

from dataclasses import dataclass, replace

from qwenjax.config.checks import check, one_of


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies changed for good, for texts longer than `original`, as later Qwens use it."""

    kind: str = "none"  # none | linear (position interpolation, arXiv 2306.15595) | yarn (arXiv 2309.00071)
    factor: float = 1.0
    original: int = 0  # yarn: the context before scaling; 0: model.context
    beta_fast: float = 32.0  # yarn: frequencies of more turns than this in `original` stay
    beta_slow: float = 1.0  # yarn: those of fewer turns are divided by the factor

    def __post_init__(self):
        one_of("model.rope_scaling.kind", self.kind, ("none", "linear", "yarn"))
        check(self.factor >= 1, f"model.rope_scaling.factor={self.factor} must be at least 1")
        check(self.beta_fast > self.beta_slow > 0, "model.rope_scaling: wanted beta_fast > beta_slow > 0")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder (report §2.3). The defaults are Qwen-1.8B; Qwen1.5/2/3 and Llama are other values."""

    vocab: int = 151_936  # embedding rows, padding included (the tokenizer has 151,851 ids)
    layers: int = 24
    embed: int = 2048
    heads: int = 16
    ffn: int = 5504  # the real width; config.json of the releases stores twice this
    kv_heads: int = 0  # 0: as many as heads (all of Qwen-1); see `kv`
    head_dim: int = 0  # 0: embed / heads; `head_size` is what results
    context: int = 2048  # training length T; also what context extension measures lengths against
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False  # RMSNorm over each query and key head (Qwen3)
    tie_embeddings: bool = False
    # What the report chose against (§2.3.1), to measure what the choice is worth; no layout of others has these
    gated: bool = True  # SwiGLU; False: GELU between two matrices, of 4·embed for as many parameters as 8/3·embed
    norm: str = "rms"  # rms | layer (LayerNorm: with a mean taken off, and a bias)
    rope_dtype: str = "float32"  # of the rotary frequencies: float32 | bfloat16
    rope_scaling: RopeScaling = RopeScaling()
    # Beyond `context`, when the model reads and not when it trains (report §2.3.2): each sequence by its own length
    ntk: bool = False  # dynamic NTK-aware interpolation of the rotary base
    logn: bool = False  # queries behind `context` scaled by log_context(position + 1)
    windows: tuple[int, ...] = ()  # positions that each layer sees back, 0: all; (): all in every layer

    def __post_init__(self):
        check(
            not self.windows or (len(self.windows) == self.layers and min(self.windows) >= 0),
            f"model.windows={self.windows}: wanted one for each of {self.layers} layers, 0 or more",
        )
        for name in ("vocab", "layers", "embed", "heads", "ffn", "context"):
            check(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} must be positive")
        if not self.head_dim:
            check(
                self.embed % self.heads == 0,
                f"model.embed={self.embed} is not a multiple of model.heads={self.heads}; set model.head_dim",
            )
        check(self.head_size % 2 == 0, f"rotary embedding needs an even head width, got {self.head_size}")
        check(
            self.heads % self.kv == 0,
            f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv}: a KV head serves a whole group",
        )
        one_of("model.norm", self.norm, ("rms", "layer"))
        one_of("model.rope_dtype", self.rope_dtype, ("float32", "bfloat16"))
        check(self.rope_base > 0 and self.norm_eps > 0, "model.rope_base and model.norm_eps must be positive")
        check(not self.ntk or self.head_size > 2, "model.ntk raises the rotary base to h/(h-2): heads wider than 2")
        check(not self.logn or self.context > 1, "model.logn takes logarithms to the base model.context: 2 or more")

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.head_dim or self.embed // self.heads

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
        q, kv = self.heads * self.head_size, self.kv * self.head_size
        norm = self.embed * (1 + (self.norm == "layer"))
        layer = self.embed * (2 * q + 2 * kv) + (2 + self.gated) * self.embed * self.ffn + 2 * norm
        layer += (q + 2 * kv) * self.qkv_bias + 2 * self.head_size * self.qk_norm
        return self.embedding_params + self.layers * layer + norm

    @property
    def plain(self) -> bool:
        """Whether nothing is as the report chose against."""
        return self.gated and self.norm == "rms" and self.rope_dtype == "float32"

    def flops_per_token(self, length: int) -> int:
        """Matmul FLOPs to train on one token, forward and backward, in sequences of `length`.

        6 per matmul parameter (the input embedding is a lookup) plus causal attention: two products of
        2·heads·head_size·length/2 FLOPs per layer, three times over.
        """
        matmul = self.params - self.vocab * self.embed * (0 if self.tie_embeddings else 1)
        return 6 * matmul + 6 * self.layers * self.heads * self.head_size * length


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
SMOLLM2_135M = ModelConfig(  # not a Qwen: small enough to be aligned on a laptop, and it speaks ChatML
    vocab=49_152,
    layers=30,
    embed=576,
    heads=9,
    kv_heads=3,
    ffn=1536,
    context=8192,
    rope_base=100_000.0,
    norm_eps=1e-5,
    qkv_bias=False,
    tie_embeddings=True,
)
