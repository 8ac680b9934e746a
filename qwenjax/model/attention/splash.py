"""Flash attention on TPUs: jax's splash kernel under our contract (attention.py), one call per device.

Rows are self-attention without a cache, causal by position in the row: within a segment positions must rise, as they do
in packed rows and prompts. Scores never leave the chip's memory, so a layer keeps [b t n h] instead of [b n t t].

Where the mesh splits positions (context parallelism), every device gathers the keys and values of its rows and answers
its share of the queries, in zigzag order; their gradients are summed over the devices on the way back.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from qwenjax.model.attention import zigzag
from qwenjax.sharding import per_device

LANES = 128  # of a vector register: lengths and head widths are multiples
BLOCK = 1024  # queries and keys per step; 512 makes twice the partial gradients of q, which are summed in memory


def attend(
    q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng, *, block: int = BLOCK, interpret: bool = False
) -> jax.Array:
    """See `attention.attend`.

    Args:
      block: most queries, and keys, that one step of the kernel holds.
      interpret: run the kernel step by step in XLA, on any platform.
    Raises:
      ValueError: what this backend cannot do: dropout, a cache, lengths or head widths that are no multiples of 128.
    """
    t, h = q.shape[1], q.shape[3]
    if dropout:
        raise ValueError("attention backend splash has no dropout; use compute.attention=xla")
    if q_pos is not k_pos:
        raise ValueError("attention backend splash is for whole rows, not for a cache; use compute.attention=xla")
    segments = jnp.where(q_pos < 0, -1, 0 if q_segment is None else q_segment)  # padding sees only padding

    def local(q, k, v, segments):
        parts = t // q.shape[1]  # devices that share a row
        chunk = t if parts == 1 else q.shape[1] // 2
        if chunk % LANES or h % LANES:
            split = f"length {t}" if parts == 1 else f"2 x {parts} chunks of length {t}, or {chunk}"
            raise ValueError(
                f"attention backend splash wants multiples of {LANES}, got {split} and head width {h}; "
                "use compute.attention=xla"
            )
        run = _kernel(q.shape[2], t, parts, chunk, window, block, interpret)
        q_segments = segments
        if parts > 1:
            k, v, segments = (zigzag.gather(x) for x in (k, v, segments))
            q, q_segments = (zigzag.spread(x, parts) for x in (q, q_segments))
        heads_first = (x.swapaxes(1, 2) for x in (q * h**-0.5, k, v))
        out = jax.vmap(run)(*heads_first, kernel.SegmentIds(q_segments, segments)).swapaxes(1, 2)
        out = jnp.where(q_segments[:, :, None, None] < 0, 0, out)
        return (out if parts == 1 else zigzag.collect(out, parts),)

    rows = ("batch", "length")
    heads, kv_heads = (*rows, "heads", None), (*rows, "kv_heads", None)
    return per_device(local, (heads, kv_heads, kv_heads, rows), (heads,))(q, k, v, segments)[0]


def _kernel(heads: int, t: int, parts: int, chunk: int, window: int | None, block: int, interpret: bool):
    """The kernel of this device's part of one sequence: q [n t/parts h], k and v [k t h] -> [n t/parts h]."""
    size = max(n for n in range(LANES, min(chunk, block) + 1, LANES) if chunk % n == 0)
    blocks = kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        use_fused_bwd_kernel=True,
    )
    mask = masks.CausalMask((t, t)) if window is None else masks.LocalMask((t, t), (window - 1, 0), 0)
    if parts > 1:
        mask.q_sequence = zigzag.order(t, parts)
    whole = kernel.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=parts,
        block_sizes=blocks,
        residual_checkpoint_name="attn_out",  # what the backward pass needs is saved, or not, under this name
        interpret=interpret,
    )
    if parts == 1:
        return whole

    def mine(info):  # which blocks to compute, [1 queries keys], and the position of each query, [queries]
        axis = info.ndim // 2
        size = info.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(info, jax.lax.axis_index(zigzag.AXIS) * size, size, axis)

    return jax.tree.map(mine, whole)
