"""The decode loop against fresh forward passes, token by token, for every option; batches, stops, streaming."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qwenjax.config import Compute, MeshShape, ModelConfig, RopeScaling
from qwenjax.generate.decode import Request, generate
from qwenjax.generate.prefill import bucket
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.model import transformer
from qwenjax.sharding import make_mesh

CFG = ModelConfig(vocab=64, layers=2, embed=32, heads=4, kv_heads=2, ffn=48, context=8, rope_base=100.0)
EXACT = Compute(dtype="float32", remat="none").resolved("cpu", 1)
SIZE = 60
WARM = Sample(temperature=3.0, top_p=0.9)
ALL = {"ntk": True, "logn": True, "windows": (8, 16)}
YARN = {"rope_scaling": RopeScaling("yarn", 4.0, beta_fast=2.0, beta_slow=0.1), "windows": (6, 6)}
# After 25 tokens: 28, 26, 32 and 30 of them. T = 8, so that each row passes borders at other steps than the others
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16]]


@jax.jit
def weights():
    """Far from uniform, so that a wrong alpha, LogN or mask changes log-probabilities by 0.06 or more.

    Not farther: here an error of 1 ulp in the weights moves them by 2e-5, at twice the size by 3e-4, which is more than
    the tolerances below allow for sums in another order.
    """
    params = nn.meta.unbox(transformer.init_params(CFG, jax.random.key(0)))
    return jax.tree.map(lambda x: x * 4, params)


def made(**changes):
    return transformer.prepare(transformer.Transformer(replace(CFG, **changes), EXACT), weights())


def requests(max_new_tokens=25, sampling=WARM):
    return [Request(p, max_new_tokens, sampling, seed=i + 7) for i, p in enumerate(PROMPTS)]


@functools.partial(jax.jit, static_argnums=0)
def last_row(model, params, ids, positions, lengths):
    hidden, _ = model.apply({"params": params}, ids, positions, None, None, lengths)
    scores = transformer.logits(params, jnp.take_along_axis(hidden, jnp.argmax(positions, 1)[:, None, None], 1)[:, 0])
    return jax.nn.log_softmax(scores), jax.nn.log_softmax(jnp.where(jnp.arange(CFG.vocab) < SIZE, scores, -jnp.inf))


def fresh(model, params, prompt, ids, frozen=False):
    """[steps v] log-probabilities of each step by one whole forward pass each, all steps as rows of a batch."""
    text = np.array([*prompt, *ids])
    lengths = np.arange(len(prompt), len(text))
    where = np.arange(32)
    positions = np.where(where < lengths[:, None], where, -1)
    rows = np.where(where < lengths[:, None], np.pad(text, (0, 32))[:32], 0)
    return last_row(model, params, rows, positions, lengths * 0 + len(prompt) if frozen else lengths)


@pytest.mark.parametrize("options", [ALL, YARN])
def test_each_step_equals_the_last_row_of_a_fresh_forward(options):
    """Past T and 2T, where dynamic NTK changes alpha."""
    model, params = made(**options)
    together = generate(model, params, requests(sampling=Greedy()), size=SIZE)
    for prompt, out in zip(PROMPTS, together):
        assert (len(out.ids), out.reason) == (25, "length")
        model_probs, probs = fresh(model, params, prompt, out.ids)
        assert out.ids == np.argmax(probs, -1).tolist()
        want = np.take_along_axis(np.asarray(model_probs), np.array(out.ids)[:, None], 1)[:, 0]
        np.testing.assert_allclose(out.model_logprobs, want, atol=1e-4)
    assert len({tuple(x.ids) for x in together}) == len(PROMPTS)


def test_frozen_keeps_the_alpha_of_the_prompt_and_exact_does_not():
    model, params = made(**ALL)
    greedy = requests(sampling=Greedy())
    frozen, exact = (generate(model, params, greedy, size=SIZE, frozen_ntk=frozen) for frozen in (True, False))
    for prompt, out in zip(PROMPTS, frozen):
        model_probs, _ = fresh(model, params, prompt, out.ids, frozen=True)
        want = np.take_along_axis(np.asarray(model_probs), np.array(out.ids)[:, None], 1)[:, 0]
        np.testing.assert_allclose(out.model_logprobs, want, atol=1e-4)
    assert [x.ids for x in frozen] != [x.ids for x in exact]


@pytest.mark.parametrize("cache", ["plain", "int8"])
def test_a_request_gives_the_same_alone_and_in_a_batch(cache):
    model, params = made(**ALL)
    together = generate(model, params, requests(), size=SIZE, kv_cache=cache)
    for i in (1, 3):
        (alone,) = generate(model, params, requests()[i : i + 1], size=SIZE, kv_cache=cache)
        assert alone.ids == together[i].ids
        np.testing.assert_allclose(alone.logprobs, together[i].logprobs, atol=1e-4)


def test_samplings_and_lengths_mix_in_one_batch():
    model, params = made(**ALL)
    samplings = [Greedy(), WARM, Sample(temperature=2.0, repetition_penalty=1.5), Greedy(1.5)]
    asked = [Request(p, n, s, seed=3) for p, n, s in zip(PROMPTS, (3, 9, 12, 1), samplings)]
    together = generate(model, params, asked, size=SIZE)
    assert [len(out.ids) for out in together] == [3, 9, 12, 1]
    for one, out in zip(asked, together):  # in a batch of requests like it
        assert out.ids == generate(model, params, [one] * 4, size=SIZE)[3].ids
    assert together[0].logprobs == [0, 0, 0] != together[1].logprobs


def test_log_probabilities_of_sampled_tokens_under_both_distributions():
    model, params = made(**ALL)
    out = generate(model, params, requests(10, Sample(temperature=2.0, top_k=4)), size=SIZE)[0]
    model_probs, probs = (np.asarray(x) for x in fresh(model, params, PROMPTS[0], out.ids))
    steps = np.arange(10)
    np.testing.assert_allclose(out.model_logprobs, model_probs[steps, out.ids], atol=1e-4)
    for row, token, logprob in zip(probs / 2, out.ids, out.logprobs):
        kept = np.sort(row)[-4:]
        assert row[token] >= kept[0]
        np.testing.assert_allclose(logprob, row[token] - np.log(np.exp(kept).sum()), atol=1e-4)


def test_a_repetition_penalty_covers_prompt_and_continuation():
    model, params = made(**ALL)
    banned = generate(model, params, requests(25, Greedy(1e6)), size=SIZE)
    for prompt, out in zip(PROMPTS, banned):  # until every positive score is used up, nothing occurs twice
        assert len({*prompt, *out.ids[:12]}) == len(prompt) + 12


def test_padding_rows_of_the_vocabulary_are_never_sampled():
    model, params = made(**ALL)
    flat = jax.tree.map(jnp.zeros_like, params)  # uniform logits: every id is as likely
    outs = generate(model, flat, [Request([1], 25, Sample(), seed=i) for i in range(4)], size=5)
    assert {i for out in outs for i in out.ids} == {0, 1, 2, 3, 4}
    np.testing.assert_allclose(outs[0].logprobs, np.log(1 / 5), rtol=1e-5)
    np.testing.assert_allclose(outs[0].model_logprobs, np.log(1 / 64), rtol=1e-5)  # as training has it


@pytest.fixture(scope="module")
def full():
    """25 ids of a text that nothing stops, those that stops are made of only once."""
    out = generate(*made(**ALL), [Request(PROMPTS[0], 25, WARM, seed=62)], size=SIZE)[0].ids
    assert all(out.count(out[i]) == 1 for i in (2, 3, 4, 5, 9, 10, 11)), out
    return out


def stopped(stops, min_new_tokens=0, **options):
    asked = [Request(PROMPTS[0], 25, replace(WARM, min_new_tokens=min_new_tokens), seed=62)]
    return generate(*made(**ALL), asked, size=SIZE, stops=stops, **options)[0]


def test_stops_at_ids_and_sequences_of_ids_and_leaves_them_out(full):
    assert stopped([full[4], full[9]]).ids == full[:4]
    assert stopped([full[3:6], [full[4], 61]]).ids == full[:3]
    assert stopped([full[3:6]]).reason == "stop"
    assert stopped([[full[3], full[5]], 61]).ids == full


def test_nothing_stops_before_min_new_tokens(full):
    out = stopped([full[4]], min_new_tokens=8)
    assert full[4] not in out.ids[:8]
    assert out.ids[:4] == full[:4]
    assert len(out.ids) >= 8
    assert stopped([full[3:6]], min_new_tokens=8).ids == full  # its end comes too early to count


def test_stop_texts_are_found_across_tokens(full):
    """Each id is the text '<id>'; stop texts begin and end within them."""
    decode = lambda ids: "".join(f"<{i}>" for i in ids)  # noqa: E731
    text = decode(full)
    stop = f"{full[5]}><{full[6]}>"  # begins within a token
    out = stopped([stop], decode=decode)
    assert (out.ids, out.text, out.reason) == (full[:5], text[: text.index(stop)], "stop")
    assert stopped(["<nothing>"], decode=decode).ids == full


@pytest.mark.parametrize("kind", ["none", "ids", "text"])
def test_streamed_ids_join_to_the_completion(full, kind):
    """Also when the beginning of a stop came and did not go on."""
    stops = {"none": [], "ids": [[full[2], 61], full[9:12]], "text": [f"{full[4]}><x", f"{full[9]}><{full[10]}>"]}[kind]
    parts = []
    out = stopped(
        stops, decode=lambda ids: "".join(f"<{i}>" for i in ids), on_token=lambda row, ids: parts.append((row, ids))
    )
    assert [i for _, ids in parts for i in ids] == out.ids == (full if kind == "none" else full[:9])
    assert len(parts) > 2
    assert {row for row, _ in parts} == {0}


def test_seeds_decide_and_sharded_equals_unsharded():
    model, params = made(**ALL)
    call = lambda seed: [Request(p, 25, WARM, seed) for p in PROMPTS]  # noqa: E731
    one = [x.ids for x in generate(model, params, call(1), size=SIZE)]
    assert one == [x.ids for x in generate(model, params, call(1), size=SIZE)]
    assert one != [x.ids for x in generate(model, params, call(2), size=SIZE)]
    split = transformer.Transformer(model.cfg, replace(EXACT, fuse="no"))
    with jax.set_mesh(make_mesh(MeshShape(fsdp=4, tensor=2), 64)):
        assert one == [x.ids for x in generate(split, weights(), call(1), size=SIZE)]


def test_texts_longer_than_a_chunk_are_read_as_in_one_pass(monkeypatch):
    monkeypatch.setattr("qwenjax.generate.prefill.CHUNK", 8)
    model, params = made(**ALL)
    text = np.random.default_rng(0).integers(1, SIZE, 31).tolist()
    hidden, _ = model.apply({"params": params}, jnp.array([text]), None, None, None, jnp.array([31]))
    want = jax.nn.log_softmax(transformer.logits(params, hidden[0]))
    (long,) = generate(model, params, [Request(text, 1)], size=SIZE)
    np.testing.assert_allclose(long.model_logprobs, want[-1, long.ids[0]], atol=1e-4)


def test_few_widths():
    assert [bucket(n, 16) for n in (1, 16, 17, 24, 25, 33, 49, 64)] == [16, 16, 24, 24, 32, 48, 64, 64]


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        Request([])
    with pytest.raises(ValueError, match="max_new_tokens >= 1"):
        Request([1], max_new_tokens=0)
    call = functools.partial(generate, *made(), size=SIZE)
    with pytest.raises(ValueError, match="ids outside 0 to 63"):
        call([Request([1, 64])])
    with pytest.raises(ValueError, match="need `decode`"):
        call([Request([1])], stops=["\nHuman:"])
    with pytest.raises(ValueError, match="empty stop"):
        call([Request([1])], stops=[[]])
    with pytest.raises(ValueError, match="known: plain, int8"):
        call([Request([1])], kv_cache="int4")
