"""Flash attention on NVIDIA GPUs: cuDNN's kernel, through `jax.nn`, under our contract (attention.py).

Rows are self-attention without a cache, causal by position in the row, as for splash. Packed rows cost a mask
[b 1 t t] that all heads share: jax's public function takes neither segments nor their offsets.

Its backward pass adds up in no fixed order: with it runs repeat, and resume, to rounding only, unless
XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true asks for the slower one.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwenjax.sharding import per_device

WIDTH = 128  # widest head on every architecture that the kernel runs on
DTYPES = ("bfloat16", "float16")


def attend(
    q, k, v, q_pos, k_pos, q_segment, k_segment, window, dropout, rng, *, implementation: str = "cudnn"
) -> jax.Array:
    """See `attention.attend`. Without segments padding must come last in a row: a row in which it does not becomes NaN.

    Args:
      implementation: "xla" makes the same call without the kernel: on any platform, in any dtype.
    Raises:
      ValueError: what this backend cannot do: dropout, a cache, positions split over devices, float32, odd lengths,
        head widths that are wide or no multiples of 8.
    """
    t, h = q.shape[1], q.shape[3]
    if dropout:
        raise ValueError("attention backend cudnn has no dropout; use compute.attention=xla")
    if q_pos is not k_pos:
        raise ValueError("attention backend cudnn is for whole rows, not for a cache; use compute.attention=xla")
    if implementation == "cudnn" and q.dtype not in DTYPES:
        raise ValueError(
            f"attention backend cudnn computes in {' or '.join(DTYPES)}, got {q.dtype}; "
            "use compute.dtype=bfloat16 or compute.attention=xla"
        )
    if t % 2 or h % 8 or h > WIDTH:
        raise ValueError(
            f"attention backend cudnn wants even lengths and head widths of 8, 16, … {WIDTH}, got length {t} and "
            f"head width {h}; use compute.attention=xla"
        )

    def local(q, k, v, positions, *segments):
        if q.shape[1] != t:
            raise ValueError(
                "attention backend cudnn wants rows in one piece (mesh.context=1); use compute.attention=xla"
            )
        padding = positions < 0
        mask, back = None, window
        if segments:
            of = jnp.where(padding, -1, segments[0])  # padding sees only padding
            mask = of[:, None, :, None] == of[:, None, None, :]
            if window is not None:  # in the mask, because cuDNN before 9.10.2 takes no window beside one
                index = jnp.arange(t)
                mask &= index[:, None] - index < window
                back = None
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            is_causal=True,  # also beside a window: without it jax's cuDNN path lets queries see what follows
            local_window_size=None if back is None else (back - 1, 0),
            implementation=implementation,
        )
        if not segments:
            early = jnp.any(padding[:, :-1] & ~padding[:, 1:], axis=1)
            out = jnp.where(early[:, None, None, None], jnp.nan, out)
        return (jnp.where(padding[:, :, None, None], 0, out).astype(v.dtype),)

    rows = ("batch", "length")
    heads, kv_heads = (*rows, "heads", None), (*rows, "kv_heads", None)
    segments = () if q_segment is None else (q_segment,)
    names = (heads, kv_heads, kv_heads, rows, *(rows for _ in segments))
    return checkpoint_name(per_device(local, names, (heads,))(q, k, v, q_pos, *segments)[0], "attn_out")
