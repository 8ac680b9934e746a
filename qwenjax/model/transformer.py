"""The decoder: embedding, a scan over layers, final norm; the head is applied by whoever needs logits.

`Transformer.apply({"params": params}, tokens, …)` returns hidden states, because logits over 152k entries for every
position would be the largest array of all: losses take the head, sampling takes the last position.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn

from qwenjax.config import Compute, Lora, ModelConfig
from qwenjax.model import cache as caches
from qwenjax.model import rope
from qwenjax.model.cache import Cache
from qwenjax.model.layers import Block, TokenInfo, drop, normalisation, weight
from qwenjax.sharding import constrain, per_device

# What the backward pass keeps of a layer for each `compute.remat`, by the names in layers.py; the rest is recomputed.
SAVED = {
    "matmuls": ("q", "k", "v", "attn_out", "x_mid", "gate", "up", "low"),  # only element-wise work is recomputed
    "attention": ("q", "k", "v", "attn_out"),
    "attn_out": ("attn_out",),  # the attention kernel runs once
    "full": (),  # only each layer's input
}

ALL = 1 << 30  # a window that hides nothing


class Transformer(nn.Module):
    """The whole decoder. Parameters: embed [v d], blocks/… (each with a leading layers axis), norm, head [d v].

    `apply` also takes the collections of model/lora.py.
    """

    cfg: ModelConfig
    compute: Compute
    dropout: float = 0.0
    prepared: bool = False  # the parameters are those of `prepare`: for decoding, not for training
    lora: Lora | None = None  # rank, alpha and dropout of the adapters, if some are given

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Cache | tuple[Cache, ...] | None = None,
        lengths: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | tuple[Cache, ...] | None]:
        """Hidden states after the final norm.

        Args:
          tokens: [b t] int32 ids below cfg.vocab.
          positions: [b t] int32, -1 for padding; None is 0, 1, 2, … in every row.
          segments: [b t] int32; tokens see only their own segment. None: a row is one document.
          cache: keys and values of earlier positions, when decoding (`empty_cache`): a tuple by layer if prepared.
          lengths: [b] int32, each row's number of tokens after this call, without padding: dynamic NTK's alpha follows
            from it. None is training, where NTK and LogN are off; windows and rope_scaling stay on.
        Returns: [b t d] in the compute dtype, and the cache extended by these tokens (None if none came).
        """
        cfg, compute = self.cfg, self.compute
        if segments is not None and cache is not None:
            raise ValueError("segments are for packed training rows; a cached sequence is one document")
        if "lora" in self.variables and (self.lora is None or self.prepared):
            raise ValueError("this model does not read adapters: construct it with `lora`, or merge them first")
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        embed = weight(self, "embed", ("vocab", "embed"), (cfg.vocab, cfg.embed))
        if not cfg.tie_embeddings:
            weight(self, "head", ("embed", "vocab"), (cfg.embed, cfg.vocab))
        with jax.named_scope("embed"):
            x = lookup(embed, tokens, cfg.vocab, compute.dtype)
        x = constrain(drop(self, x, self.dropout), "batch", "length", None)

        logn = rope.logn(positions, cfg.context) if cfg.logn and lengths is not None else None
        context = TokenInfo(positions, segments, *rope.cos_sin(positions, cfg, lengths), logn)
        if self.prepared:
            layers = []
            for i, window in enumerate(cfg.windows or [0] * cfg.layers):
                block = Block(cfg, compute, 0.0, window or None, compute.fuse == "yes", name=f"block{i}")
                x, layer = block(x, context, None if cache is None else cache[i])
                layers.append(layer)
            return normalisation(cfg, "norm")(x), None if cache is None else tuple(layers)

        window, windows = None, None
        if len(set(cfg.windows)) == 1:
            window = cfg.windows[0] or None  # known at compile time, as kernels need it
        elif cfg.windows:
            if compute.attention not in ("auto", "xla"):
                raise ValueError(
                    f"compute.attention={compute.attention!r} has one window for all layers, but model.windows has "
                    f"{sorted(set(cfg.windows))}; use compute.attention=xla"
                )
            windows = jnp.array([w or ALL for w in cfg.windows], jnp.int32)
        block, remat = Block, compute.remat
        if remat == "none" and "quantised" in self.variables:
            remat = "matmuls"  # else the backward pass would keep the dequantised weights of all layers
        if remat != "none":
            keep = jax.checkpoint_policies.save_only_these_names(*SAVED[remat])
            # inside a scan XLA cannot merge the recomputation with the forward pass anyway
            block = nn.remat(Block, policy=keep, prevent_cse=not compute.scan)
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0, "quantised": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0, 0),
            length=cfg.layers,
            unroll=1 if compute.scan else cfg.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        blocks = layers(cfg, compute, self.dropout, window, lora=self.lora, name="blocks")
        x, cache = blocks(x, context, cache, windows)
        return normalisation(cfg, "norm")(x), cache


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(embed: jax.Array, tokens: jax.Array, vocab: int, dtype: str) -> jax.Array:
    """Rows [b t d] of the table [v d] in the compute dtype; the gradient is added up in float32.

    A frequent token occurs thousands of times in a batch: a bf16 sum would lose most of them.
    """
    return jnp.take(constrain(embed.astype(dtype), "vocab", None), tokens, axis=0)


def _lookup_gradient(vocab, dtype, tokens, g):
    def local(tokens, g):
        return (jnp.zeros((1, vocab, g.shape[-1]), jnp.float32).at[0, tokens].add(g.astype(jnp.float32)),)

    rows = ("batch", "length")
    (sums,) = per_device(local, (rows, (*rows, None)), (("shards", "vocab", None),), keep=("tensor",))(tokens, g)
    return constrain(jnp.sum(sums, axis=0), "vocab", "embed"), None


lookup.defvjp(lambda embed, tokens, vocab, dtype: (lookup(embed, tokens, vocab, dtype), tokens), _lookup_gradient)


def head(params: dict) -> jax.Array:
    """[d v]: the output embedding, which is the transposed input embedding when they are tied."""
    return params["head"] if "head" in params else params["embed"].T


def logits(params: dict, hidden: jax.Array) -> jax.Array:
    """[… d] -> [… v] float32 logits; for a few positions, not for a training batch."""
    return jnp.einsum("...d,dv->...v", hidden, head(params).astype(hidden.dtype), preferred_element_type=jnp.float32)


def init_params(cfg: ModelConfig, rng: jax.Array) -> dict:
    """Fresh float32 parameters with the released initialisation, boxed with their logical axes (see `nn.unbox`)."""
    plain = Compute(dtype="float32", remat="none", attention="xla", fuse="no")
    return Transformer(cfg, plain).init(rng, jnp.zeros((1, 1), jnp.int32))["params"]


def empty_cache(cfg: ModelConfig, batch: int, length: int, dtype: jnp.dtype, kind: str = "plain") -> Cache:
    """A cache of all layers with room for `length` positions of `batch` sequences; kind: one of cache.KINDS."""
    one = caches.empty(cfg, batch, length, dtype, kind)
    return jax.tree.map(lambda x: jnp.zeros((cfg.layers, *x.shape), x.dtype), one)


def prepare(model: Transformer, params: dict) -> tuple[Transformer, dict]:
    """Model and parameters for decoding: cast to the compute dtype once, and each layer's in arrays of its own.

    A scan would copy every layer's weights and cache out of their stacks at each token. With compute.fuse, which is for
    CPUs, projections are fused and all weights are stored [in, out]; and bfloat16 becomes float32, because XLA for CPUs
    would convert whole weights at each product.
    """
    compute = dataclasses.replace(model.compute, dtype="float32") if model.compute.fuse == "yes" else model.compute
    model = model.clone(compute=compute, dropout=0.0, prepared=True)
    return model, unstack(params, model)


@functools.partial(jax.jit, static_argnums=1)
def unstack(params: dict, model: Transformer) -> dict:
    """Parameters for a prepared model: block0, block1, … in the compute dtype, fused if compute.fuse says so."""
    cfg, fused, dtype = model.cfg, model.compute.fuse == "yes", model.compute.dtype
    params = jax.tree.map(lambda w: w.astype(dtype), params)
    out = {name: params[name] for name in ("embed", "norm", "head") if name in params}
    if fused:
        out["head"] = head(params)
    for i in range(cfg.layers):
        block = jax.tree.map(operator.itemgetter(i), params["blocks"])
        if fused:
            block["attn"], block["mlp"] = _fuse(block["attn"]), _fuse(block["mlp"])
        out[f"block{i}"] = block
    return out


def _fuse(block: dict) -> dict:
    """One layer's attention or MLP with the weights that read the same input side by side: qkv, gate_up."""
    fused = dict(block)
    if "down" in block:
        down = fused.pop("down").T
        if "gate" not in fused:
            return {"down": down, **fused}
        return {"gate_up": jnp.concatenate([fused.pop("gate"), fused.pop("up")], axis=1), "down": down, **fused}
    for name, axis in (("{}", 1), ("{}_bias", 0)):
        if name.format("q") in fused:
            fused[name.format("qkv")] = jnp.concatenate([fused.pop(name.format(part)) for part in "qkv"], axis=axis)
    return fused
