"""Against outputs recorded from the original Qwen code (tests/goldens/README.md). Tolerance 1e-4 in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwen1

from qwenjax import optim
from qwenjax.config import AdamW, Compute
from qwenjax.model import transformer
from qwenjax.objectives.losses import next_token_loss

CFG = qwen1.config()
EXACT = Compute(dtype="float32", remat="none").resolved("cpu", 1)


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


def test_prefill_then_decode_equals_the_original_code(params):
    """Within the training length, where no context extension is active."""
    gold = qwen1.golden("decode")
    ids, prefill = gold["within_ids"].reshape(1, -1), int(gold["within_prefill"])
    apply = jax.jit(transformer.Transformer(CFG, EXACT).apply)
    positions = np.arange(ids.shape[1], dtype=np.int32)[None]
    cache = transformer.empty_cache(CFG, 1, ids.shape[1], jnp.float32)
    hidden, cache = apply({"params": params}, ids[:, :prefill], positions[:, :prefill], None, cache)
    rows = [transformer.logits(params, hidden[:, -1])]
    for i in range(prefill, ids.shape[1]):
        hidden, cache = apply({"params": params}, ids[:, i : i + 1], positions[:, i : i + 1], None, cache)
        rows.append(transformer.logits(params, hidden[:, -1]))
    want = gold["within_logits"].reshape(-1, CFG.vocab)
    np.testing.assert_allclose(np.concatenate(rows)[: len(want)], want, atol=1e-4, rtol=0)


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
        peak=settings["lr"], schedule="constant", warmup=0, b1=b1, b2=b2, eps=settings["eps"],
        decay=settings["weight_decay"], clip=1e9,
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
