"""Schedules by hand, the decay mask by name, clipping and AdamW by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qwenjax import optim
from qwenjax.config import QWEN_14B, AdamW
from qwenjax.model import transformer


def rates(steps, at, **kwargs):
    schedule = optim.schedule(AdamW(**{"peak_lr": 1.0, "warmup_steps": 10, "min_lr_ratio": 0.1} | kwargs), steps)
    return [float(schedule(s)) for s in at]


def test_warm_up_learns_from_the_first_step_and_ends_at_the_peak():
    np.testing.assert_allclose(rates(100, [0, 4, 9], schedule="constant"), [0.1, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(rates(100, [0, 50], schedule="constant", warmup_steps=0), [1, 1])


def test_cosine_goes_to_a_tenth_of_the_peak():
    # 90 steps after the warm-up: halfway (55) the cosine is at (1 + 0.1) / 2
    np.testing.assert_allclose(rates(100, [10, 55, 100]), [1.0, 0.55, 0.1], rtol=1e-6)


def test_linear_and_wsd():
    np.testing.assert_allclose(rates(100, [10, 55, 100], schedule="linear"), [1.0, 0.55, 0.1], rtol=1e-6)
    # the last fifth decays: 80 is still the peak, 90 halfway
    np.testing.assert_allclose(rates(100, [10, 80, 90, 100], schedule="wsd"), [1, 1, 0.55, 0.1], rtol=1e-6)


def test_the_reports_schedule():
    config = AdamW()
    schedule = optim.schedule(config, 715_256)
    np.testing.assert_allclose([float(schedule(s)) for s in (1999, 715_256)], [3e-4, 3e-5], rtol=1e-5)


def test_warm_up_must_leave_steps():
    with pytest.raises(ValueError, match=r"warmup_steps=10 leaves no step of 10: add --set optim.warmup_steps=1"):
        rates(10, [0])


def test_exactly_the_matrices_decay():
    shapes = jax.eval_shape(lambda: transformer.init_params(QWEN_14B, jax.random.key(0)))
    mask = optim.decay_mask(nn.meta.unbox(shapes))
    decayed = {jax.tree_util.keystr(p) for p, yes in jax.tree_util.tree_flatten_with_path(mask)[0] if yes}
    attn, mlp = "['blocks']['attn']", "['blocks']['mlp']"
    matrices = {f"{attn}['{n}']" for n in "qkvo"} | {f"{mlp}['{n}']" for n in ("gate", "up", "down")}
    assert decayed == matrices | {"['embed']", "['head']"}


def test_an_unknown_parameter_must_be_decided():
    with pytest.raises(ValueError, match="does not say whether parameter"):
        optim.decay_mask({"adapter": jnp.ones(2)})


def test_clip_adam_and_decay_by_hand():
    """One matrix (q) and one scale; gradient (3, 4) has norm 5 and is clipped to norm 1."""
    params = {"q": jnp.array([[2.0]]), "scale": jnp.array([2.0])}
    grads = {"q": jnp.array([[3.0]]), "scale": jnp.array([4.0])}
    tx = optim.make(
        AdamW(peak_lr=0.1, schedule="constant", warmup_steps=0, eps=0.1, weight_decay=0.5, grad_clip=1.0), 10
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    # first Adam step: g / (|g| + eps) with g = 0.6 and 0.8; decay 0.5 * 2 on the matrix only
    np.testing.assert_allclose(updates["q"], [[-0.1 * (0.6 / 0.7 + 1.0)]], rtol=1e-5)
    np.testing.assert_allclose(updates["scale"], [-0.1 * 0.8 / 0.9], rtol=1e-5)
