"""The conformance suite of the attention contract: every backend, against a loop over queries in float64.

A backend that cannot do a case must raise; silence is a failure.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qwenjax
from qwenjax.model.attention import attend, resolve

# The TPU kernel runs here in the interpreter, in float32; tests/plan compiles it for a TPU. Of cuDNN the call is tested
# here, through jax's other implementation of the same function, and the kernel below, where there is a GPU.
BACKENDS = {
    "xla": lambda *args, window=None: attend(*args, window=window, backend="xla"),
    "splash": lambda *args, window=None: attend(*args, window=window, backend="splash", block=128, interpret=True),
    "cudnn": lambda *args, window=None: attend(*args, window=window, backend="cudnn", implementation="xla"),
}


def reference(q, k, v, q_pos, k_pos, q_segment, k_segment, window):
    """Query by query, head by head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [
            s
            for s in range(k.shape[1])
            if 0 <= k_pos[b, s] <= q_pos[b, t]
            and (window is None or q_pos[b, t] - k_pos[b, s] < window)
            and (q_segment is None or q_segment[b, t] == k_segment[b, s])
        ]
        if keys:
            scores = k[b, keys, n // group] @ q[b, t, n] / np.sqrt(q.shape[-1])
            probs = np.exp(scores - scores.max())
            out[b, t, n] = probs / probs.sum() @ v[b, keys, n // group]
    return out


def case(t=9, s=9, n=4, k=4, h=8, b=2, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(b, t, n, h)).astype(np.float32)
    kv = rng.normal(size=(2, b, s, k, h)).astype(np.float32)
    pos = np.broadcast_to(np.arange(s, dtype=np.int32), (b, s))
    return q, kv[0], kv[1], pos[:, s - t :], pos


CASES = {
    "causal": (case(), {}),
    "one token": (case(t=1, s=1), {}),
    "odd length": (case(t=13, s=13, h=6), {}),
    "grouped queries": (case(n=6, k=2), {}),
    "one kv head": (case(n=4, k=1), {}),
    "window": (case(), {"window": 3}),
    "window of one": (case(), {"window": 1}),
    "decode": (case(t=1, s=12), {}),
    "chunked prefill": (case(t=4, s=12), {}),
    "segments": (case(), {"segments": np.array([[0] * 4 + [1] * 5, [0] + [1] * 2 + [2] * 6], np.int32)}),
    "segments and window": (case(n=4, k=2), {"window": 2, "segments": np.array([[0] * 4 + [1] * 5] * 2, np.int32)}),
    "padding": (case(), {"pad": 3}),
    "empty slots": (case(t=2, s=9), {"empty": 2}),
    # as large as kernels want it
    "rows": (case(t=256, s=256, n=2, k=2, h=128), {}),
    "rows, grouped queries": (case(t=128, s=128, n=4, k=2, h=128, b=1), {}),
    "rows, window": (case(t=256, s=256, n=1, k=1, h=128, b=1), {"window": 50}),
    "rows, segments": (case(t=256, s=256, n=1, k=1, h=128), {"segments": np.sort(np.arange(512).reshape(2, 256) % 3)}),
    "rows, all at once": (
        case(t=128, s=128, n=2, k=1, h=128),
        {"segments": np.sort(np.arange(256).reshape(2, 128) % 3), "window": 20, "pad": 10},
    ),
    "rows, padding": (case(t=128, s=128, n=1, k=1, h=128), {"pad": 30}),
}
CACHES = {name for name in CASES if not name.startswith("rows")}  # kernels are for whole rows
REFUSED = {"splash": CACHES, "cudnn": CACHES, "xla": set()}


def arrange(name):
    (q, k, v, q_pos, k_pos), extra = CASES[name]
    q_pos, k_pos, segments = q_pos.copy(), k_pos.copy(), extra.get("segments")
    if "pad" in extra:  # the second row is shorter
        q_pos[1, -extra["pad"] :] = k_pos[1, -extra["pad"] :] = -1
    if "empty" in extra:  # a cache with free slots in between
        k_pos[:, 1 : 1 + extra["empty"]] = -1
    if name.startswith("rows"):
        k_pos = q_pos  # whole rows: one array of positions for both
    return (q, k, v, q_pos, k_pos, segments, segments), extra.get("window")


def compiled(backend, window):
    """attend(q, k, v, q_pos, k_pos, segments, segments), in which equal positions stay one array."""

    def call(q, k, v, q_pos, k_pos, segments):
        return BACKENDS[backend](q, k, v, q_pos, q_pos if k_pos is None else k_pos, segments, segments, window=window)

    return jax.jit(call)


def called(backend, args, window):
    *qkv, q_pos, k_pos, segments, _ = args
    return compiled(backend, window)(*qkv, q_pos, None if k_pos is q_pos else k_pos, segments)


@pytest.mark.parametrize(("backend", "name"), list(itertools.product(BACKENDS, CASES)))
def test_forward_equals_the_definition(backend, name):
    args, window = arrange(name)
    if name in REFUSED[backend]:
        with pytest.raises(ValueError, match=r"use compute\.attention=xla"):
            called(backend, args, window)
        return
    np.testing.assert_allclose(called(backend, args, window), reference(*args, window), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("backend", "name"), [(b, n) for b, n in itertools.product(BACKENDS, CASES) if n not in REFUSED[b]]
)
def test_gradient_equals_finite_differences(backend, name):
    args, window = arrange(name)
    rng = np.random.default_rng(1)
    mix = rng.normal(size=args[0].shape)

    def objective(*qkv):
        return jnp.sum(called(backend, (*qkv, *args[3:]), window) * mix)

    grads = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(*args[:3])
    for i in range(3):
        direction, eps = rng.normal(size=args[i].shape), 1e-4
        shifted = [
            [a if j != i else np.asarray(a, np.float64) + sign * eps * direction for j, a in enumerate(args[:3])]
            for sign in (1, -1)
        ]
        up, down = (np.sum(reference(*qkv, *args[3:], window) * mix) for qkv in shifted)
        np.testing.assert_allclose(np.sum(grads[i] * direction), (up - down) / (2 * eps), rtol=1e-3, atol=1e-4)


def test_a_query_without_keys_gives_zero_and_no_nan_gradient():
    args, _ = arrange("padding")
    out, grad = jax.value_and_grad(lambda q: jnp.sum(attend(q, *args[1:])[1, -1]))(jnp.asarray(args[0]))
    assert out == 0
    assert np.isfinite(grad).all()


def test_extreme_scores_stay_finite_in_bf16():
    (q, k, v, *rest), _ = arrange("causal")
    out = attend(*(jnp.asarray(1e3 * x, jnp.bfloat16) for x in (q, k)), jnp.asarray(v, jnp.bfloat16), *rest)
    assert out.dtype == jnp.bfloat16
    assert jnp.isfinite(out).all()


def test_dropout_keeps_the_mean_and_drops_the_share():
    (q, k, v, *rest), _ = arrange("causal")
    v = np.ones_like(v)
    outs = jax.vmap(lambda key: attend(q, k, v, *rest, dropout=0.25, rng=key))(jax.random.split(jax.random.key(0), 400))
    np.testing.assert_allclose(outs.mean(), 1.0, atol=0.02)
    first = outs[:, :, 0]  # the first query sees one key: kept and scaled, or dropped
    assert set(np.unique(np.asarray(first).round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    np.testing.assert_allclose((first == 0).mean(), 0.25, atol=0.03)


def test_unknown_backend_is_named():
    args, _ = arrange("causal")
    with pytest.raises(ValueError, match="no attention backend 'flash'; known: xla, splash, cudnn"):
        attend(*args, backend="flash")


@pytest.mark.parametrize("backend", ["splash", "cudnn"])
def test_kernels_refuse_dropout_and_say_what_to_do(backend):
    args, _ = arrange("rows")
    with pytest.raises(ValueError, match=rf"{backend} has no dropout; use compute\.attention=xla"):
        attend(*args, dropout=0.1, rng=jax.random.key(0), backend=backend)


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({}, jnp.float32, "computes in bfloat16 or float16, got float32; use compute.dtype=bfloat16 or"),
        ({"t": 127, "s": 127}, jnp.bfloat16, "got length 127 and head width 128"),
        ({"h": 36}, jnp.bfloat16, "got length 128 and head width 36"),
        ({"h": 256}, jnp.bfloat16, "got length 128 and head width 256"),
    ],
)
def test_cudnn_refuses_what_the_kernel_cannot_take(changes, dtype, message):
    q, k, v, pos, _ = case(**{"t": 128, "s": 128, "h": 128} | changes)
    with pytest.raises(ValueError, match=message):
        attend(*(jnp.asarray(x, dtype) for x in (q, k, v)), pos, pos, backend="cudnn")


def test_cudnn_makes_rows_with_padding_in_front_nan_and_not_wrong():
    q, k, v, pos, _ = case(t=16, s=16)
    pos = pos.copy()
    pos[1] = np.arange(-4, 12)
    pos[1, :4] = -1
    out = called("cudnn", (q, k, v, pos, pos, None, None), None)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1, 4:]).all()
    segments = np.zeros_like(pos)  # with segments padding is one of them, wherever it lies
    out = called("cudnn", (q, k, v, pos, pos, segments, segments), None)
    np.testing.assert_allclose(out, reference(q, k, v, pos, pos, segments, segments, None), atol=2e-6)


@pytest.mark.parametrize("name", ["rows, grouped queries", "rows, window", "rows, all at once"])
def test_cudnn_lowers_for_a_gpu_forward_and_backward(name, monkeypatch):
    """Without a GPU jax knows no cuDNN version; any recent one does for lowering."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_900)
    (q, k, v, pos, _, segments, _), window = arrange(name)

    def objective(q, k, v):
        return attend(q, k, v, pos, pos, segments, segments, window=window, backend="cudnn").astype(jnp.float32).sum()

    qkv = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in (q, k, v)]
    text = jax.jit(jax.grad(objective, (0, 1, 2))).trace(*qkv).lower(lowering_platforms=("cuda",)).as_text()
    kernel = "__cudnn$fmhaSoftmax" if segments is None else "__cudnn$fmhaScaleBiasSoftmax"
    assert f"@{kernel}(" in text
    assert f"@{kernel}Backward(" in text
    assert "\\22mask_type\\22: \\22CAUSAL\\22" in text
    assert f"sliding_window_length\\22: {window if segments is None and window else 0}," in text


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU and JAX_PLATFORMS=cuda")
@pytest.mark.parametrize("name", sorted(set(CASES) - CACHES))
def test_cudnn_kernel_equals_the_reference(name):
    (q, k, v, pos, _, segments, _), window = arrange(name)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    mix = np.random.default_rng(1).normal(size=q.shape)

    def objective(backend, *qkv):
        out = attend(*qkv, pos, pos, segments, segments, window=window, backend=backend)
        return jnp.sum(out.astype(jnp.float32) * mix), out

    def run(backend, *qkv):
        grads, out = jax.jit(jax.grad(functools.partial(objective, backend), (0, 1, 2), has_aux=True))(*qkv)
        return out, *grads

    exact = run("xla", *(x.astype(jnp.float32) for x in (q, k, v)))
    for got, want in zip(run("cudnn", q, k, v), exact):  # of 8 bits, in units of the largest value
        np.testing.assert_allclose(got.astype(np.float32), want, atol=0.02 * float(jnp.abs(want).max()), rtol=0)


@pytest.mark.parametrize(
    ("platform", "changes", "wanted"),
    [
        ("tpu", {}, "splash"),
        ("cpu", {}, "xla"),
        ("gpu", {}, "cudnn"),
        *((platform, {"dropout": 0.1}, "xla") for platform in ("tpu", "gpu")),
        *((platform, {"compute.attention": "xla"}, "xla") for platform in ("tpu", "gpu")),
        *((platform, {"model.kv_heads": 1}, "xla") for platform in ("tpu", "gpu")),  # not to be split over two shards
        ("tpu", {"data.seq_len": 200}, "xla"),
        ("tpu", {"model.head_dim": 64}, "xla"),
        ("gpu", {"data.seq_len": 200}, "cudnn"),
        ("gpu", {"data.seq_len": 201}, "xla"),
        ("gpu", {"model.head_dim": 64}, "cudnn"),
        ("gpu", {"model.head_dim": 256}, "xla"),
        ("gpu", {"compute.dtype": "float32"}, "xla"),
    ],
)
def test_auto_takes_what_can_do_the_run(platform, changes, wanted):
    experiment = qwenjax.experiment("qwen1b8", overrides=changes)
    assert resolve(experiment, platform, {"tensor": 2, "context": 1}).attention == wanted


@pytest.mark.parametrize(
    ("platform", "length", "wanted"), [("tpu", 2048, "splash"), ("tpu", 1536, "xla"), ("gpu", 2048, "xla")]
)
def test_auto_where_four_devices_share_a_row(platform, length, wanted):
    """Splash wants eight chunks of 128 positions, or multiples."""
    experiment = qwenjax.experiment("qwen1b8", overrides={"data.seq_len": length})
    assert resolve(experiment, platform, {"tensor": 1, "context": 4}).attention == wanted
