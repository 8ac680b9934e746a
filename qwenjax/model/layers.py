"""The pieces of one decoder layer: RMSNorm, attention with QKV bias, SwiGLU (report §2.3.1, modeling_qwen.py).

Every parameter is declared here with its logical axes. Projections keep heads as an axis of their own, and d, which
FSDP splits, comes first where it can. Master parameters are float32 and are cast where they are used.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from qwenjax.config import Compute, Lora, ModelConfig
from qwenjax.model import cache as caches
from qwenjax.model import rope
from qwenjax.model.attention import attend
from qwenjax.model.cache import Cache
from qwenjax.model.quantise import dequantise
from qwenjax.sharding import constrain

INIT_STD = 0.02  # initializer_range of every release


class TokenInfo(NamedTuple):
    """What attention needs to know of the tokens; the same for all layers."""

    positions: jax.Array  # [b t] int32; -1 is padding
    segments: jax.Array | None  # [b t] int32, or None: each row is one document
    cos: jax.Array  # [b t 1 h/2] float32
    sin: jax.Array
    logn: jax.Array | None  # [b t 1 1] float32, scales the queries; None: 1


def project(x: jax.Array, *weights: jax.Array, fuse: bool = False) -> tuple[jax.Array, ...]:
    """[b t d] times each weight [d ...] -> one [b t ...] per weight, in x's dtype.

    With `fuse` the weights are joined for one matmul. On CPU that saves 13 % of a training step; elsewhere, and when a
    weight's columns are split over devices, joining would be a copy.
    """
    weights = [w.astype(x.dtype) for w in weights]
    if not fuse:
        return tuple(jnp.tensordot(x, w, 1) for w in weights)
    columns = [w.reshape(w.shape[0], -1) for w in weights]
    ends = [sum(c.shape[1] for c in columns[: i + 1]) for i in range(len(columns) - 1)]
    parts = jnp.split(x @ jnp.concatenate(columns, axis=1), ends, axis=-1)
    return tuple(p.reshape(*x.shape[:-1], *w.shape[1:]) for p, w in zip(parts, weights))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · scale over the last axis. Statistics in float32; cast back before the scale, as released."""
    x32 = x.astype(jnp.float32)  # a mean of bf16 squares would lose the small ones
    x32 *= jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * scale.astype(x.dtype)


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """down · (up · silu(gate)): [b t f], [b t f], [d f] -> [b t d]."""
    return jnp.einsum("btf,df->btd", up * nn.silu(gate), down)


def _gated_gradient(saved, g):
    """Written out, so that the three values that several products read are computed once.

    The TPU compiler would compute them again inside each product. Saves 2 % of a 14B step on v5e.
    """
    gate, up, down = saved
    d_act = jnp.einsum("btd,df->btf", g, down)
    gate32, up32, d32 = (a.astype(jnp.float32) for a in (gate, up, d_act))
    sigmoid = nn.sigmoid(gate32)
    silu = gate32 * sigmoid
    d_gate = d32 * up32 * (sigmoid + silu * (1 - sigmoid))
    parts = ((up32 * silu).astype(gate.dtype), d_gate.astype(gate.dtype), (d32 * silu).astype(up.dtype))
    act, d_gate, d_up = jax.lax.optimization_barrier(parts)
    return d_gate, d_up, jnp.einsum("btd,btf->df", g, act)


gated.defvjp(lambda gate, up, down: (gated(gate, up, down), (gate, up, down)), _gated_gradient)


def drop(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout with the module's "dropout" stream; the identity at rate 0."""
    if not rate:
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def weight(module: nn.Module, name: str, axes: tuple[str, ...], shape: tuple[int, ...], std: float = INIT_STD):
    """A float32 matrix parameter ~ N(0, std), or the frozen one that is stored in fewer bits (model/quantise.py)."""
    if module.has_variable("quantised", name):
        return dequantise(module.get_variable("quantised", name))
    return module.param(name, nn.with_logical_partitioning(nn.initializers.normal(std), axes), shape, jnp.float32)


def vector(module: nn.Module, name: str, axes: tuple[str, ...], shape: tuple[int, ...], fill: float):
    """A float32 bias (fill 0) or norm scale (fill 1)."""
    return module.param(name, nn.with_logical_partitioning(nn.initializers.constant(fill), axes), shape, jnp.float32)


def add_adapters(module: nn.Module, lora: Lora | None, x: jax.Array, **outputs: jax.Array) -> tuple[jax.Array, ...]:
    """Each projection of x [b t …], by name, plus alpha/rank · dropout(x) A B where the module has an adapter for it.

    Projections of one input share the dropout and one product with their A, side by side.
    """
    pairs = {name: module.get_variable("lora", name) for name in outputs if module.has_variable("lora", name)}
    if not pairs:
        return tuple(outputs.values())
    a = jnp.concatenate([pair["a"] for pair in pairs.values()], axis=-1).astype(x.dtype)
    if a.shape[-1] != len(pairs) * lora.rank:
        raise ValueError(f"the adapters of {', '.join(pairs)} do not have the rank of lora.rank={lora.rank}")
    low = jnp.tensordot(drop(module, x, lora.dropout), a, a.ndim - 1) * (lora.alpha / lora.rank)
    low = jnp.split(checkpoint_name(low, "low"), len(pairs), axis=-1)
    added = {name: outputs[name] + project(part, pair["b"])[0] for (name, pair), part in zip(pairs.items(), low)}
    return tuple((outputs | added).values())


class RMSNorm(nn.Module):
    """RMS normalisation over the last axis with a learned scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, vector(self, "scale", ("norm",), (x.shape[-1],), 1.0), self.eps)


class LayerNorm(nn.Module):
    """The alternative to RMSNorm in ablations: also subtracts the mean, and has a bias (arXiv 1607.06450)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 -= jnp.mean(x32, axis=-1, keepdims=True)
        bias = vector(self, "bias", ("norm",), (x.shape[-1],), 0.0).astype(x.dtype)
        scale = vector(self, "scale", ("norm",), (x.shape[-1],), 1.0)
        return rms_norm(x32, scale, self.eps).astype(x.dtype) + bias


def normalisation(cfg: ModelConfig, name: str) -> nn.Module:
    """The model's kind of norm, as a module of this name."""
    return (RMSNorm if cfg.norm == "rms" else LayerNorm)(cfg.norm_eps, name=name)


class Attention(nn.Module):
    """Multi-head (or grouped-query) self-attention; the only biases of the network are on q, k and v."""

    cfg: ModelConfig
    compute: Compute
    dropout: float = 0.0
    window: int | None = None
    fused: bool = False  # the parameters are those of `transformer.prepare`
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, context: TokenInfo, cache: Cache | None, window: jax.Array | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """[b t d] -> [b t d] and the cache with this call's entries; `window` replaces `self.window` in a scan."""
        cfg, d, n, k, h = self.cfg, self.cfg.embed, self.cfg.heads, self.cfg.kv, self.cfg.head_size
        if self.fused:
            (qkv,) = project(x, weight(self, "qkv", ("embed", "heads", "head_dim"), (d, n + 2 * k, h)))
            if cfg.qkv_bias:
                qkv += vector(self, "qkv_bias", ("heads", "head_dim"), (n + 2 * k, h), 0.0).astype(x.dtype)
            q_, k_, v_ = jnp.split(qkv, (n, n + k), axis=2)
        else:
            q_, k_, v_ = project(
                x,
                weight(self, "q", ("embed", "heads", "head_dim"), (d, n, h)),
                weight(self, "k", ("embed", "kv_heads", "head_dim"), (d, k, h)),
                weight(self, "v", ("embed", "kv_heads", "head_dim"), (d, k, h)),
                fuse=self.compute.fuse == "yes",
            )
            q_, k_, v_ = add_adapters(self, self.lora, x, q=q_, k=k_, v=v_)
            if cfg.qkv_bias:
                q_ += vector(self, "q_bias", ("heads", "head_dim"), (n, h), 0.0).astype(x.dtype)
                k_ += vector(self, "k_bias", ("kv_heads", "head_dim"), (k, h), 0.0).astype(x.dtype)
                v_ += vector(self, "v_bias", ("kv_heads", "head_dim"), (k, h), 0.0).astype(x.dtype)
        if cfg.qk_norm:
            q_ = rms_norm(q_, vector(self, "q_norm", ("head_dim",), (h,), 1.0), cfg.norm_eps)
            k_ = rms_norm(k_, vector(self, "k_norm", ("head_dim",), (h,), 1.0), cfg.norm_eps)
        q_ = constrain(rope.rotate(q_, context.cos, context.sin), "batch", "length", "heads", None)
        k_ = constrain(rope.rotate(k_, context.cos, context.sin), "batch", "length", "kv_heads", None)
        if context.logn is not None:
            q_ = (q_ * context.logn).astype(x.dtype)
        for name, x in (("q", q_), ("k", k_)):
            self.sow("intermediates", name, x)  # collected only where a caller asks for them (eval/tasks/entropy.py)
        q_, k_, v_ = checkpoint_name(q_, "q"), checkpoint_name(k_, "k"), checkpoint_name(v_, "v")

        k_pos, k_segment = context.positions, context.segments
        if cache is not None:
            cache = caches.write(cache, k_, v_, context.positions)
            k_, v_ = caches.read(cache, x.dtype)
            # slot = position, and causality hides every slot that is not written yet
            k_pos = jnp.broadcast_to(jnp.arange(k_.shape[1], dtype=jnp.int32), k_.shape[:2])
        out = attend(
            q_,
            k_,
            v_,
            context.positions,
            k_pos,
            context.segments,
            k_segment,
            window=self.window if window is None else window,
            dropout=self.dropout,
            rng=self.make_rng("dropout") if self.dropout else None,
            backend=self.compute.attention if cache is None else "xla",  # kernels do not read caches
        )
        out = constrain(out, "batch", "length", "heads", None)  # its checkpoint name, attn_out, is given by the backend
        # 2 L outputs are added to the residual stream: each starts smaller, so that the sum does not grow with depth
        o = weight(self, "o", ("heads", "head_dim", "embed"), (n, h, d), INIT_STD / (2 * cfg.layers) ** 0.5)
        (y,) = add_adapters(self, self.lora, out, o=jnp.einsum("btnh,nhd->btd", out, o.astype(x.dtype)))
        return y, cache


class SwiGLU(nn.Module):
    """down( up(x) · silu(gate(x)) ). In the released names w2 is the gate, w1 the up projection."""

    cfg: ModelConfig
    compute: Compute
    fused: bool = False  # the parameters are those of `transformer.prepare`
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d, f = self.cfg.embed, self.cfg.ffn
        if self.fused:
            (both,) = project(x, weight(self, "gate_up", ("embed", "ffn"), (d, 2 * f)))
            gate, up = jnp.split(both, 2, axis=-1)
            return jnp.einsum("btf,fd->btd", up * nn.silu(gate), weight(self, "down", ("ffn", "embed"), (f, d)))
        gate, up = project(
            x,
            weight(self, "gate", ("embed", "ffn"), (d, f)),
            weight(self, "up", ("embed", "ffn"), (d, f)),
            fuse=self.compute.fuse == "yes",
        )
        gate, up = add_adapters(self, self.lora, x, gate=gate, up=up)
        gate = checkpoint_name(constrain(gate, "batch", "length", "ffn"), "gate")
        up = checkpoint_name(constrain(up, "batch", "length", "ffn"), "up")
        down = weight(self, "down", ("embed", "ffn"), (d, f), INIT_STD / (2 * self.cfg.layers) ** 0.5)
        y = gated(gate, up, down.astype(x.dtype))
        if self.has_variable("lora", "down"):
            (y,) = add_adapters(self, self.lora, up * nn.silu(gate), down=y)
        return y


class GELU(nn.Module):
    """The alternative to SwiGLU in ablations: down( gelu(up(x)) ), as in GPT-2 (exact erf, no bias)."""

    cfg: ModelConfig
    fused: bool = False  # the parameters are those of `transformer.prepare`

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d, f = self.cfg.embed, self.cfg.ffn
        (up,) = project(x, weight(self, "up", ("embed", "ffn"), (d, f)))
        up = checkpoint_name(constrain(up, "batch", "length", "ffn"), "up")
        shape, axes = ((f, d), ("ffn", "embed")) if self.fused else ((d, f), ("embed", "ffn"))
        down = weight(self, "down", axes, shape, INIT_STD / (2 * self.cfg.layers) ** 0.5)
        down = (down.T if self.fused else down).astype(x.dtype)
        return jnp.einsum("btf,df->btd", nn.gelu(up, approximate=False), down)


class Block(nn.Module):
    """One pre-norm layer: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    cfg: ModelConfig
    compute: Compute
    dropout: float = 0.0
    window: int | None = None
    fused: bool = False
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, context: TokenInfo, cache: Cache | None, window: jax.Array | None = None
    ) -> tuple[jax.Array, Cache | None]:
        cfg = self.cfg
        attn = Attention(cfg, self.compute, self.dropout, self.window, self.fused, self.lora, name="attn")
        y, cache = attn(normalisation(cfg, "norm1")(x), context, cache, window)
        x = checkpoint_name(constrain(x + y, "batch", "length", None), "x_mid")
        mlp = SwiGLU(cfg, self.compute, self.fused, self.lora, name="mlp") if cfg.gated else None
        y = (mlp or GELU(cfg, self.fused, name="mlp"))(normalisation(cfg, "norm2")(x))
        return constrain(x + y, "batch", "length", None), cache
