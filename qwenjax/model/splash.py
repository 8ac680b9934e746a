"""Flash attention on TPUs: jax's splash kernel under our contract (attention.py), one call per device.

Rows are self-attention without a cache, causal by position in the row: within a segment positions must rise, as they do
in packed rows and prompts. Scores never leave the chip's memory, so a layer keeps [b t n h] instead of [b n t t].
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

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
    if t % LANES or h % LANES:
        raise ValueError(
            f"attention backend splash wants multiples of {LANES}, got length {t} and head width {h}; "
            "use compute.attention=xla"
        )
    segments = jnp.where(q_pos < 0, -1, 0 if q_segment is None else q_segment)  # padding sees only padding

    def local(q, k, v, segments):
        run = _kernel(q.shape[2], t, window, block, interpret)
        heads_first = (x.swapaxes(1, 2) for x in (q * h**-0.5, k, v))
        out = jax.vmap(run)(*heads_first, kernel.SegmentIds(segments, segments))
        return (jnp.where(segments[:, :, None, None] < 0, 0, out.swapaxes(1, 2)),)

    rows = ("batch", None)
    heads, kv_heads = (*rows, "heads", None), (*rows, "kv_heads", None)
    return per_device(local, (heads, kv_heads, kv_heads, rows), (heads,))(q, k, v, segments)[0]


def _kernel(heads: int, t: int, window: int | None, block: int, interpret: bool):
    """The kernel of one sequence: q [n t h], k and v [k t h] -> [n t h]."""
    size = max(n for n in range(LANES, min(t, block) + 1, LANES) if t % n == 0)
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
    return kernel.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        residual_checkpoint_name="attn_out",  # what the backward pass needs is saved, or not, under this name
        interpret=interpret,
    )
