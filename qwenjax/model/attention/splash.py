"""Flash attention on TPUs: jax's splash kernel under our contract, one call per device.

Self-attention, causal by index in the row: within a segment positions must rise, as they do in packed rows and prompts.

Where the mesh splits positions over c devices (context parallelism), each of them gathers the keys and values of its
rows and answers its share of the queries; gradients of keys and values are summed over the devices on the way back.
Late positions see more keys than early ones: in row order, the last of c devices would do 2 - 1/c of the mean work, and
the others wait. So a row is 2c chunks, and for attention alone device i answers the queries of chunks i and 2c-1-i
(zigzag order). The rest of the model keeps positions in order: queries travel there, and results back, in halves.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from qwenjax.sharding import per_device

AXIS = "context"  # the mesh axis that splits "length" (sharding.RULES)
LANES = 128  # of a vector register: lengths and head widths are multiples
BLOCK = 1024  # queries and keys per step; 512 makes twice the partial gradients of q, which are summed in memory


def cannot(length: int, head_dim: int, dtype: str, context: int) -> str:
    """Why this backend cannot do a call, in the words that follow its name in the error, or ''.

    Args:
      length: t of a whole row. head_dim: h. dtype: of q, k and v. context: devices that share a row.
    """
    chunks = 1 if context == 1 else 2 * context
    if length % (LANES * chunks) or head_dim % LANES:
        split = f"length {length}" + ("" if context == 1 else f" in {chunks} chunks of {length // chunks}")
        return f"wants multiples of {LANES}, got {split} and head width {head_dim}; use compute.attention=xla"
    return ""


def attend(
    q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng, *, block: int = BLOCK, interpret: bool = False
) -> jax.Array:
    """See `attention.attend`.

    Args:
      block: most queries, and keys, that one step of the kernel holds.
      interpret: run the kernel step by step in XLA, on any platform.
    """
    t, h = q.shape[1], q.shape[3]
    segments = jnp.where(q_pos < 0, -1, 0 if q_segment is None else q_segment)  # padding sees only padding

    def local(q, k, v, segments):
        devices = t // q.shape[1]  # that share a row
        if reason := cannot(t, h, str(q.dtype), devices):
            raise ValueError(f"attention backend splash {reason}")
        run = _kernel(q.shape[2], t, devices, window, block, interpret)
        q_segments = segments
        if devices > 1:
            k, v, segments = (gather(x) for x in (k, v, segments))
            q, q_segments = (spread(x, devices) for x in (q, q_segments))
        heads_first = (x.swapaxes(1, 2) for x in (q * h**-0.5, k, v))
        out = jax.vmap(run)(*heads_first, kernel.SegmentIds(q_segments, segments)).swapaxes(1, 2)
        out = jnp.where(q_segments[:, :, None, None] < 0, 0, out)
        return (out if devices == 1 else collect(out, devices),)

    rows = ("batch", "length")
    heads, kv_heads = (*rows, "heads", None), (*rows, "kv_heads", None)
    return per_device(local, (heads, kv_heads, kv_heads, rows), (heads,))(q, k, v, segments)[0]


def _kernel(heads: int, t: int, devices: int, window: int | None, block: int, interpret: bool):
    """The kernel of this device's part of one sequence: q [n t/c h], k and v [k t h] -> [n t/c h]."""
    chunk = t if devices == 1 else t // (2 * devices)
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
    if devices > 1:
        mask.q_sequence = zigzag_order(t, devices)
    whole = kernel.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=devices,
        block_sizes=blocks,
        residual_checkpoint_name="attn_out",  # what the backward pass needs is saved, or not, under this name
        interpret=interpret,
    )
    if devices == 1:
        return whole

    def own_part(info):  # which blocks to compute, [1 queries keys], and the position of each query, [queries]
        axis = info.ndim // 2
        size = info.shape[axis] // devices
        return jax.lax.dynamic_slice_in_dim(info, jax.lax.axis_index(AXIS) * size, size, axis)

    return jax.tree.map(own_part, whole)


def _routes(devices: int) -> list[list[tuple[int, int]]]:
    """(from, to) of every device's first and second chunk; each is a permutation of the devices."""
    return [[(i, min(2 * i + half, 2 * devices - 1 - 2 * i - half)) for i in range(devices)] for half in (0, 1)]


def zigzag_order(length: int, devices: int) -> np.ndarray:
    """[length] int32: the position in the row of every query, device after device, once they are spread."""
    chunks = np.arange(length, dtype=np.int32).reshape(devices, 2, -1)
    spread_out = np.empty_like(chunks)
    for half, route in enumerate(_routes(devices)):
        for source, target in route:
            spread_out[target, half] = chunks[source, half]
    return spread_out.reshape(-1)


def spread(x: jax.Array, devices: int) -> jax.Array:
    """This device's queries [b t/c …] in row order -> those it is to answer; runs inside `per_device`."""
    return _exchange(x, _routes(devices))


def collect(x: jax.Array, devices: int) -> jax.Array:
    """The inverse of `spread`."""
    return _exchange(x, [[(target, source) for source, target in route] for route in _routes(devices)])


def gather(x: jax.Array) -> jax.Array:
    """[b t/c …] in row order -> [b t …]: whole rows on each of their devices.

    Pieces arrive along a new first axis, because then its transpose is a reduce-scatter on TPUs. Along `t` the gradient
    would be all-reduced, at twice the bytes, and cut afterwards.
    """
    pieces = jnp.moveaxis(jax.lax.all_gather(x, AXIS), 0, 1)  # [b c t/c …]
    return pieces.reshape(x.shape[0], -1, *x.shape[2:])


def _exchange(x: jax.Array, routes: list[list[tuple[int, int]]]) -> jax.Array:
    halves = [jax.lax.ppermute(half, AXIS, route) for half, route in zip(jnp.split(x, 2, axis=1), routes)]
    return jnp.concatenate(halves, axis=1)
