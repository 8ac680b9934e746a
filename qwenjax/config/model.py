"""The shape of the decoder, and the released sizes (report Table 1; the 72B from its config.json)."""

from dataclasses import dataclass, replace

from qwenjax.config.overrides import check, one_of


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies rescaled for texts longer than `original`, as in later Qwens and Llamas.

    linear (position interpolation, arXiv 2306.15595), yarn (arXiv 2309.00071) and llama3 apply at every length. dynamic
    changes the base with the length of a text beyond the context, smoothly, while `model.ntk` does it in steps.
    """

    kind: str = "none"  # none | linear | dynamic | yarn | llama3
    factor: float = 1.0
    original: int = 0  # yarn, llama3: the context before scaling; 0: model.context
    beta_fast: float = 32.0  # yarn, llama3: frequencies with more turns than this in `original` are kept
    beta_slow: float = 1.0  # yarn, llama3: frequencies with fewer turns are divided by the factor
    attention: float = 0.0  # yarn: factor on queries and keys; 0: 0.1 ln(factor) + 1

    def __post_init__(self):
        one_of("model.rope_scaling.kind", self.kind, ("none", "linear", "dynamic", "yarn", "llama3"))
        check(self.attention >= 0, f"model.rope_scaling.attention={self.attention} must not be negative")
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
    head_dim: int = 0  # width of a head as config.json gives it; 0: embed / heads. Code reads `head_size`
    context: int = 2048  # training length T; longer texts need context extension
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False  # RMSNorm over each query and key head (Qwen3)
    tie_embeddings: bool = False
    # Alternatives that the report decided against (§2.3.1), for ablations; no format of other libraries holds them
    gated: bool = True  # SwiGLU; False: GELU between two matrices (4·embed has as many parameters as 8/3·embed here)
    norm: str = "rms"  # rms | layer (LayerNorm, which subtracts the mean and adds a bias)
    rope_dtype: str = "float32"  # of the rotary frequencies: float32 | bfloat16
    rope_scaling: RopeScaling = RopeScaling()
    # Context extension at inference (report §2.3.2), for each sequence that is longer than `context`
    ntk: bool = False  # dynamic NTK-aware interpolation of the rotary base
    logn: bool = False  # scales the query at a position >= context by log(position + 1) / log(context)
    windows: tuple[int, ...] = ()  # latest positions that each layer attends to, 0: all of them; (): all in all layers

    def __post_init__(self):
        per_layer = not self.windows or (len(self.windows) == self.layers and min(self.windows) >= 0)
        check(per_layer, f"model.windows={self.windows}: wanted one for each of {self.layers} layers, 0 or more")
        for name in ("vocab", "layers", "embed", "heads", "ffn", "context"):
            check(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} must be positive")
        heads, kv = self.heads, self.kv
        even = self.head_dim or self.embed % heads == 0
        check(even, f"model.embed={self.embed} is not a multiple of model.heads={heads}; set model.head_dim")
        check(self.head_size % 2 == 0, f"rotary embedding needs an even head width, got {self.head_size}")
        check(heads % kv == 0, f"model.heads={heads} is not a multiple of model.kv_heads={kv}")
        one_of("model.norm", self.norm, ("rms", "layer"))
        one_of("model.rope_dtype", self.rope_dtype, ("float32", "bfloat16"))
        check(self.rope_base > 0 and self.norm_eps > 0, "model.rope_base and model.norm_eps must be positive")
        check(not self.ntk or self.head_size > 2, "model.ntk raises the rotary base to h/(h-2): heads wider than 2")
        check(not self.logn or self.context > 1, "model.logn takes logarithms to the base model.context: 2 or more")

    @property
    def head_size(self) -> int:
        """Width of one head: `head_dim`, or embed / heads where that is 0."""
        return self.head_dim or self.embed // self.heads

    @property
    def kv(self) -> int:
        """Number of key/value heads: `kv_heads`, or `heads` where that is 0."""
        return self.kv_heads or self.heads

    @property
    def embedding_params(self) -> int:
        """Parameters of the input and output embeddings."""
        return self.vocab * self.embed * (1 if self.tie_embeddings else 2)

    @property
    def params(self) -> int:
        """Exact parameter count (docs/report.md, Sizes: 2Vh + L(4h² + 3h + 3hf + 2h) + h for Qwen-1)."""
        q, kv = self.heads * self.head_size, self.kv * self.head_size
        norm = self.embed * (1 + (self.norm == "layer"))
        layer = self.embed * (2 * q + 2 * kv) + (2 + self.gated) * self.embed * self.ffn + 2 * norm
        layer += (q + 2 * kv) * self.qkv_bias + 2 * self.head_size * self.qk_norm
        return self.embedding_params + self.layers * layer + norm

    @property
    def plain(self) -> bool:
        """Whether none of the ablations is on."""
        return self.gated and self.norm == "rms" and self.rope_dtype == "float32"

    def flops_per_token(self, length: int) -> int:
        """Matmul FLOPs to train on one token, forward and backward, in sequences of `length`.

        6 per matmul parameter (the input embedding is a lookup) plus causal attention: two products of
        2·heads·head_size·length/2 FLOPs per layer, three times over.
        """
        matmul = self.params - self.vocab * self.embed * (0 if self.tie_embeddings else 1)
        return 6 * matmul + 6 * self.layers * self.heads * self.head_size * length


def doubling_windows(context: int, layers: int, every: int = 4) -> tuple[int, ...]:
    """`model.windows` that grow with depth: T, 2T, 4T, …; lower layers are more sensitive to length (report §2.3.2)."""
    return tuple(context << (layer // every) for layer in range(layers))


QWEN_1B8 = ModelConfig()
QWEN_7B = replace(QWEN_1B8, layers=32, embed=4096, heads=32, ffn=11008)
QWEN_14B = replace(QWEN_1B8, vocab=152_064, layers=40, embed=5120, heads=40, ffn=13696)
QWEN_72B = replace(  # not in the report; as in the released config.json
    QWEN_1B8, vocab=152_064, layers=80, embed=8192, heads=64, ffn=24576, rope_base=1e6, context=32_768
)
QWEN_SIZES = {"1b8": QWEN_1B8, "7b": QWEN_7B, "14b": QWEN_14B}  # of the report's experiments, experiments/qwen_*.py
SMOLLM2_135M = ModelConfig(  # not a Qwen: it uses ChatML and is small enough to be aligned on a laptop
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
