"""Against outputs recorded from the original Qwen code (tests/goldens/README.md). Tolerance 1e-4 in float32."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwen1

from qwenjax import optim
from qwenjax.config import AdamW, Compute
from qwenjax.generate.decode import Request, generate
from qwenjax.model import cache as caches
from qwenjax.model import rope, transformer
from qwenjax.objectives.cross_entropy import next_token_loss

CFG = qwen1.config()
EXACT = Compute(dtype="float32", remat="none").resolved("cpu", 1)


# The training length by which the recordings extend the context (config.json's seq_length)
EXTENDED = replace(CFG, context=32, ntk=True, logn=True)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, *args):
    hidden, cache = model.apply({"params": params}, *args)
    return transformer.logits(params, hidden), cache


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, qwen1.params())


@pytest.mark.parametrize("compute", [EXACT, EXACT.__class__(dtype="float32", fuse="no", attention="xla", scan=False)])
def test_short_sequence_logits_equal_the_original_code(params, compute):
    gold = qwen1.golden("short")
    hidden, _ = jax.jit(transformer.Transformer(CFG, compute).apply)({"params": params}, gold["input_ids"])
    np.testing.assert_allclose(transformer.logits(params, hidden), gold["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(hidden[0], gold["hidden_2"].reshape(hidden[0].shape), atol=1e-4, rtol=0)


def test_bf16_logits_stay_as_near_as_the_originals(params):
    gold = qwen1.golden("short")
    compute = Compute(dtype="bfloat16").resolved("cpu", 1)
    hidden, _ = transformer.Transformer(CFG, compute).apply({"params": params}, gold["input_ids"])
    assert hidden.dtype == jnp.bfloat16
    ours = np.abs(transformer.logits(params, hidden)[0] - gold["logits"][0])
    theirs = np.abs(gold["logits_bf16"].reshape(ours.shape) - gold["logits"][0])
    assert ours.mean() < 1.5 * theirs.mean()


@pytest.mark.parametrize(("ntk", "logn"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_beyond_the_training_length_equals_the_original_code(params, ntk, logn):
    gold = qwen1.golden("long")
    model = transformer.Transformer(replace(EXTENDED, ntk=bool(ntk), logn=bool(logn)), EXACT)
    logits, _ = run(model, params, gold["input_ids"], None, None, None, jnp.array([86]))
    np.testing.assert_allclose(logits, gold[f"logits_ntk{ntk}_logn{logn}"], atol=1e-4, rtol=0)
    if ntk and logn:
        logits, _ = run(model, params, gold["input_ids_mid"], None, None, None, jnp.array([48]))
        np.testing.assert_allclose(logits, gold["logits_mid_ntk1_logn1"], atol=1e-4, rtol=0)


def test_ntk_alpha_equals_the_original_code():
    gold = qwen1.golden("long")
    assert rope.ntk_alpha(jnp.array(gold["ntk_alpha_lengths"]), 32).tolist() == gold["ntk_alpha"].tolist()


@pytest.mark.parametrize("name", ["short", "long"])
def test_left_padded_batches_equal_the_original_code(params, name):
    """Positions count the padding; alpha goes by the rows without it; padding is hidden as a document of its own.

    Greedy steps are whole forward passes with the prompt's alpha.
    """
    gold = qwen1.golden("leftpad")
    ids, mask = gold[f"{name}_ids"], gold[f"{name}_mask"]
    model = transformer.Transformer(EXTENDED, EXACT)
    steps = gold[f"{name}_greedy_ids"]
    ids = np.concatenate([ids, steps], axis=1)
    segments = np.concatenate([mask, np.ones_like(steps)], axis=1)
    logits, _ = run(model, params, ids, None, segments, None, mask.sum(axis=1))
    start = mask.shape[1] - 1
    np.testing.assert_allclose(logits[:, start], gold[f"{name}_last_logits"], atol=1e-4, rtol=0)
    chosen = np.argmax(logits[:, start:-1], axis=-1)
    assert ((chosen == steps) | (gold[f"{name}_greedy_margin"] < 1e-3)).all()


def step_by_step(params, ids, prefill, kind="plain"):
    """[steps v]: logits of the prompt's last token and of each later one, alpha frozen."""
    model, params = transformer.prepare(transformer.Transformer(EXTENDED, EXACT), params)
    n, lengths = ids.shape[1], jnp.array([prefill])
    positions = np.arange(n, dtype=np.int32)[None]
    cache = tuple(caches.empty(EXTENDED, 1, n, jnp.float32, kind) for _ in range(EXTENDED.layers))
    rows = []
    for part in [slice(0, prefill), *(slice(i, i + 1) for i in range(prefill, n))]:
        logits, cache = run(model, params, ids[:, part], positions[:, part], None, cache, lengths)
        rows.append(logits[0, -1])
    return np.stack(rows)


@pytest.mark.parametrize("name", ["within", "cross", "longprompt"])
def test_prefill_then_decode_equals_the_original_code(params, name):
    """Within the training length, across it, and from a prompt that is longer."""
    gold = qwen1.golden("decode")
    got = step_by_step(params, gold[f"{name}_ids"], int(gold[f"{name}_prefill"]))
    want = gold[f"{name}_logits"][0]
    np.testing.assert_allclose(got[: len(want)], want, atol=1e-4, rtol=0)


def test_greedy_ids_across_the_training_length_equal_the_original_codes(params):
    gold = qwen1.golden("decode")
    request = Request(gold["greedy_prompt"][0].tolist(), max_new_tokens=40)
    model = transformer.Transformer(EXTENDED, EXACT)
    (out,) = generate(model, params, [request], size=CFG.vocab, frozen_ntk=True)
    assert gold["greedy_margin"].min() > 1e-4
    assert out.ids == gold["greedy_ids"][0].tolist()


# A call's greatest value lands on 255 or, cut off, on 254 by its last bit, which no other arithmetic reproduces. One of
# the 4096 ways that explain the recording's first row, by layer and k or v and head.
LANDS = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 1], [1, 0, 1]])


def test_released_int8_cache_equals_the_original_code(params, monkeypatch):
    gold = qwen1.golden("kv8")
    prefill, want = int(gold["prefill"]), gold["logits"][0]
    rest = step_by_step(params, gold["ids"], prefill, "int8_released")[: len(want)]
    plain = step_by_step(params, gold["ids"], prefill)[: len(want)]
    better = step_by_step(params, gold["ids"], prefill, "int8")[: len(want)]
    assert np.abs(rest - want).max() < 0.04 < 0.14 < np.abs(plain - want).max()
    assert np.abs(better - plain).mean() < np.abs(want - plain).mean() / 2

    quantise, lands = caches._quantise, iter(LANDS)
    monkeypatch.setattr(
        caches, "_quantise", lambda x, low, high, _: quantise(x, low, high, (next(lands)[:, None] - 0.5) * 1e-4)
    )
    jax.clear_caches()  # or the program above runs again
    got = step_by_step(params, gold["ids"][:, :prefill], prefill, "int8_released")
    np.testing.assert_allclose(got[0], want[0], atol=1e-4, rtol=0)


def test_first_gradients_and_five_adamw_steps_equal_the_original_code(params):
    gold = qwen1.golden("train")
    settings = json.loads(str(gold["adamw"]))
    ids, labels = gold["input_ids"], gold["labels"]
    targets, weights = np.where(labels[:, 1:] == -100, 0, labels[:, 1:]), (labels[:, 1:] != -100).astype(np.float32)
    model = transformer.Transformer(CFG, EXACT)

    @jax.jit
    @jax.value_and_grad
    def loss_and_grad(p):
        hidden, _ = model.apply({"params": p}, ids[:, :-1])
        return next_token_loss(hidden, transformer.head(p), targets, weights, 16) / weights.sum()

    want = qwen1.from_qwen1({k[5:]: v for k, v in gold.items() if k.startswith("grad/")}, CFG)
    for path, g in jax.tree_util.tree_flatten_with_path(loss_and_grad(params)[1])[0]:
        other = want
        for key in path:
            other = other[key.key]
        np.testing.assert_allclose(g, other, atol=1e-5, rtol=0, err_msg=jax.tree_util.keystr(path))

    b1, b2 = settings["betas"]
    config = AdamW(
        peak_lr=settings["lr"], schedule="constant", warmup_steps=0, b1=b1, b2=b2, eps=settings["eps"],
        weight_decay=settings["weight_decay"], grad_clip=1e9,
    )  # fmt: skip
    tx = optim.make(config, len(gold["losses"]), mask=None)  # the recording decays every parameter
    state, losses, norms = tx.init(params), [], []
    for _ in range(len(gold["losses"])):
        loss, grads = loss_and_grad(params)
        losses.append(loss)
        norms.append(optax.tree.norm(grads))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(losses, gold["losses"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(norms, gold["grad_norms"], atol=1e-4, rtol=1e-4)
