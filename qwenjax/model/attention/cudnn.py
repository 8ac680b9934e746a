"""Flash attention on NVIDIA GPUs: cuDNN's kernel, through `jax.nn`, under our contract.

Self-attention, causal by index in the row, as for splash. Packed rows cost a mask [b 1 t t] that all heads share.

The backward pass sums in no fixed order. So runs repeat and resume only up to rounding, unless
XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true asks for the slower kernel.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwenjax.sharding import per_device

WIDTH = 128  # widest head on every architecture that the kernel runs on
DTYPES = ("bfloat16", "float16")


def cannot(length: int, head_dim: int, dtype: str, context: int) -> str:
    """Why this backend cannot do a call, or ''; see `splash.cannot`."""
    if dtype not in DTYPES:
        return f"computes in {' or '.join(DTYPES)}, got {dtype}; use compute.dtype=bfloat16 or compute.attention=xla"
    if length % 2 or head_dim % 8 or head_dim > WIDTH:
        return (
            f"wants even lengths and head widths of 8, 16, … {WIDTH}, got length {length} and head width {head_dim}; "
            "use compute.attention=xla"
        )
    return "wants rows in one piece (mesh.context=1); use compute.attention=xla" if context > 1 else ""


def attend(
    q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng, *, implementation: str = "cudnn"
) -> jax.Array:
    """See `attention.attend`. Without segments padding must come last in a row; a row where it does not becomes NaN.

    implementation: "xla" makes the same call without the kernel, on any platform, in any dtype.
    """
    t, h = q.shape[1], q.shape[3]

    def local(q, k, v, positions, *segments):
        if reason := cannot(t, h, str(q.dtype) if implementation == "cudnn" else DTYPES[0], t // q.shape[1]):
            raise ValueError(f"attention backend cudnn {reason}")
        padding = positions < 0
        mask, last = None, None if window is None else (window - 1, 0)
        if segments:
            segment = jnp.where(padding, -1, segments[0])  # padding sees only padding
            mask = segment[:, None, :, None] == segment[:, None, None, :]
            if window is not None:  # goes into the mask, because cuDNN before 9.10.2 takes a mask or a window, not both
                index = jnp.arange(t)
                mask &= index[:, None] - index < window
                last = None
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            is_causal=True,  # needed with a window, too: without it jax's cuDNN path lets queries see later keys
            local_window_size=last,
            implementation=implementation,
        )
        if not segments:
            padded_early = jnp.any(padding[:, :-1] & ~padding[:, 1:], axis=1)
            out = jnp.where(padded_early[:, None, None, None], jnp.nan, out)
        return (jnp.where(padding[:, :, None, None], 0, out).astype(v.dtype),)

    rows = ("batch", "length")
    heads, kv_heads = (*rows, "heads", None), (*rows, "kv_heads", None)
    segments = () if q_segment is None else (q_segment,)
    names = (heads, kv_heads, kv_heads, rows, *(rows for _ in segments))
    return checkpoint_name(per_device(local, names, (heads,))(q, k, v, q_pos, *segments)[0], "attn_out")
