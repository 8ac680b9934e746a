"""Rollouts against the decode loop and against the training forward pass; padding, stops, meshes."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from flax import linen as nn

from qwenjax.config import Compute, MeshShape
from qwenjax.generate import rollout as rollout_module
from qwenjax.generate.decode import Request, generate
from qwenjax.generate.rollout import rollout
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.model.transformer import Transformer, head, init_params
from qwenjax.objectives.log_probs import token_log_probs
from qwenjax.sharding import make_mesh, sharding
from qwenjax.xla.hlo import HloProgram

# Context extension is on in the model; it must not show in what is learnt from
CFG = replace(tiny_model.CONFIG, vocab=64, kv_heads=4, qkv_bias=True, tie_embeddings=False, ntk=True, logn=True)
EXACT = Compute(dtype="float32", remat="none", loss_chunk=16).resolved("cpu", 1)
SIZE, PAD, NEW = 60, 61, 12
WARM = Sample(temperature=2.0, top_p=0.9)
STOPS = (5, 9, 17, 34)  # ends some of the responses
LENGTHS = np.array([3, 1, 7, 5, 4, 4, 2, 6], np.int32)
PROMPTS = np.random.default_rng(0).integers(1, SIZE, (8, 7)).astype(np.int32)
SEEDS = np.arange(8, dtype=np.uint32) + 7
TEXTS = [row[:n].tolist() for row, n in zip(PROMPTS, LENGTHS)]


@functools.cache
def weights():
    """The tiny model with matrices half as large: an error of 1 ulp in the weights moves log-probabilities by 2e-6.

    At full size that is 1.7e-5: more than the tolerances below, so sums in another order could fail a right decoder.
    """

    def halved(path, x):
        return x if "norm" in jax.tree_util.keystr(path) else x / 2

    return jax.tree_util.tree_map_with_path(halved, tiny_model.params(CFG))


def model(compute=EXACT, **changes):
    return Transformer(replace(CFG, **changes), compute)


@functools.cache
def jitted(sampling=WARM, stops=(), max_new_tokens=NEW, size=SIZE, compute=EXACT, **changes):
    fixed = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stops": tuple(stops), "size": size, "pad": PAD}
    call = functools.partial(rollout, model(compute, **changes), **fixed)
    return jax.jit(call, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time


def made(prompts=PROMPTS, lengths=LENGTHS, seeds=SEEDS, params=None, **options):
    out = jitted(**options)(weights() if params is None else params, prompts, lengths, seeds)
    return jax.tree.map(np.asarray, out)


def responses(out):
    return [row[mask].tolist() for row, mask in zip(out.tokens, out.mask)]


@pytest.fixture(scope="module")
def free():
    """Responses that nothing stops."""
    return made()


@pytest.mark.parametrize("sampling", [WARM, Sample(0.7, top_k=4, min_new_tokens=6), Greedy()])
def test_the_same_as_generate(sampling):
    """Prompts of all lengths, some stopped: ids, both log-probabilities, and why it ended."""
    out = made(sampling=sampling, stops=STOPS)
    asked = [Request(text, NEW, sampling, int(seed)) for text, seed in zip(TEXTS, SEEDS)]
    want = generate(model(), weights(), asked, size=SIZE, stops=STOPS)
    assert {one.reason for one in want} == {"stop", "length"}
    for row, (ids, one) in enumerate(zip(responses(out), want)):
        assert out.ended[row] == (one.reason == "stop")
        assert ids[: len(one.ids)] == one.ids
        assert len(ids) - len(one.ids) == out.ended[row]  # the stop token belongs to the response
        assert not out.ended[row] or ids[-1] in STOPS
        n = len(one.ids)
        np.testing.assert_allclose(out.logp[row][out.mask[row]][:n], one.model_logprobs, atol=1e-4)
        np.testing.assert_allclose(out.drawn_logp[row][out.mask[row]][:n], one.logprobs, atol=1e-4)


def test_a_row_is_its_prompt_its_response_and_padding(free):
    assert free.mask.sum(1).tolist() == [NEW] * 8
    out = made(sampling=WARM, stops=STOPS)
    assert len(set(out.mask.sum(1).tolist())) > 2
    assert out.tokens.shape == out.mask.shape == out.logp.shape == out.drawn_logp.shape == (8, 7 + NEW)
    for row, (text, ids) in enumerate(zip(TEXTS, responses(out))):
        padding = 7 + NEW - len(text) - len(ids)
        assert out.tokens[row].tolist() == text + ids + [PAD] * padding
        assert out.mask[row].tolist() == [False] * len(text) + [True] * len(ids) + [False] * padding
    for logp in (out.logp, out.drawn_logp):
        assert (logp[out.mask] < 0).all()
        assert (logp[~out.mask] == 0).all()
    assert out.lengths.tolist() == LENGTHS.tolist()


def forward(params, out, compute, **changes):
    """[b p+n-1] log-probability of each next token, as an update computes it; and [b p+n-1 v] scores."""
    places = np.arange(out.tokens.shape[1])
    positions = np.where(places < (out.lengths + out.mask.sum(1))[:, None], places, -1)
    hidden, _ = model(compute, **changes).apply({"params": params}, out.tokens, positions)
    logp, _ = token_log_probs(hidden[:, :-1], head(params), out.tokens[:, 1:], compute.loss_chunk)
    scores = jnp.einsum("btd,dv->btv", hidden[:, :-1].astype(jnp.float32), head(params))
    return np.asarray(logp), np.asarray(scores)


@pytest.mark.parametrize(
    ("compute", "temperature", "tolerance"),
    [
        (EXACT, 0.7, 1e-5),
        (replace(EXACT, dtype="bfloat16", fuse="no"), 0.7, 0.1),  # the same products in another order, to 8 bits
        (replace(EXACT, dtype="bfloat16"), 0.7, 0.1),  # decoded in float32, as on CPUs
    ],
)
def test_log_probabilities_are_those_of_the_training_forward(compute, temperature, tolerance):
    """Classic bug 1: of the full softmax at temperature 1, beyond the training length without NTK and LogN."""
    tiny = tiny_model.params(CFG)
    params = jax.tree.map(lambda x: x / 2, tiny) | {"head": 4 * tiny["head"]}  # peaked, but not certain
    out = made(params=params, sampling=Sample(temperature, top_p=0.9), stops=(5, 9), compute=compute, context=8)
    assert 0 < out.ended.sum() < 8
    logp, scores = forward(params, out, compute, context=8)
    mask = out.mask[:, 1:]
    np.testing.assert_allclose(out.logp[:, 1:][mask], logp[mask], atol=tolerance)
    assert np.ptp(logp[mask]) > 2

    if compute.dtype == "float32":
        rows = np.where(np.arange(CFG.vocab) < SIZE, scores[mask].astype(np.float64), -np.inf) / temperature
        probs = np.exp(rows - rows.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        order = np.argsort(-probs, axis=-1)
        ranked = np.take_along_axis(probs, order, -1)
        before = np.cumsum(ranked, -1) - ranked  # what is likelier; the one that crosses top_p stays
        np.put_along_axis(probs, order, np.where(before < 0.9, ranked, 0), -1)
        drawn = np.take_along_axis(probs, out.tokens[:, 1:][mask][:, None], -1)[:, 0] / probs.sum(-1)
        np.testing.assert_allclose(out.drawn_logp[:, 1:][mask], np.log(drawn), atol=1e-4)
        assert (out.drawn_logp[out.mask] > out.logp[out.mask] - 1e-5).mean() > 0.5  # sharper


@pytest.mark.parametrize("more", [5, 17])
def test_padding_changes_nothing(free, more):
    """Nor what stands there, as long as it is no token."""
    out = made(np.pad(PROMPTS, ((0, 0), (0, more)), constant_values=-1))
    assert responses(out) == responses(free)
    assert (out.tokens[:, 7 + NEW :] == PAD).all()
    np.testing.assert_allclose(out.logp[:, : 7 + NEW], free.logp, atol=1e-5)


def test_a_row_alone_is_the_row_in_a_batch(free):
    for row in (0, 2, 7):
        out = made(PROMPTS[row, None], LENGTHS[row, None], SEEDS[row, None])
        assert responses(out) == responses(free)[row : row + 1]
        np.testing.assert_allclose(out.logp[0], free.logp[row], atol=1e-5)


def test_seeds_decide(free):
    again, other = made(), made(seeds=SEEDS + 1)
    np.testing.assert_array_equal(again.logp, free.logp)
    assert responses(other) != responses(free)


@pytest.mark.parametrize("at", [0, NEW - 1])
def test_stops_at_the_first_token_or_at_the_last(free, at, monkeypatch):
    """And no step is made once all rows have ended."""
    row, steps, pick = slice(4, 5), [], rollout_module.pick
    (ids,) = responses(free)[row]
    assert ids.index(ids[at]) == at
    assert not free.ended.any()

    def counted(*args, **options):
        jax.debug.callback(lambda: steps.append(1))
        return pick(*args, **options)

    monkeypatch.setattr(rollout_module, "pick", counted)
    out = made(PROMPTS[row], LENGTHS[row], SEEDS[row], stops=(ids[at],))
    jax.effects_barrier()
    assert len(steps) == at + 1
    assert responses(out) == [ids[: at + 1]]
    assert out.ended.tolist() == [True]


def test_only_ids_with_a_text_are_drawn():
    flat = jax.tree.map(jnp.zeros_like, weights())  # uniform: every id is as likely
    out = made(params=flat, sampling=Sample(), size=5)
    assert set(out.tokens[out.mask]) == {0, 1, 2, 3, 4}
    np.testing.assert_allclose(out.drawn_logp[out.mask], np.log(1 / 5), rtol=1e-5)
    np.testing.assert_allclose(out.logp[out.mask], np.log(1 / 64), rtol=1e-5)  # as training has it


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def collectives(program: HloProgram, loops: bool):
    """Of the entry, or of all that loops run."""
    names = [program.entry]
    if loops:
        names = [n for op in program.executed() if op.opcode == "while" for n in op.called("body", "condition")]
    for name in names:  # grows meanwhile
        inner = [n for op in program.computations[name] for n in op.called("calls", "to_apply", "body", "condition")]
        names += [n for n in inner if loops and n in program.computations and n not in names]
    return [op for name in names for op in program.computations[name] if op.opcode.startswith(COLLECTIVES)]


@pytest.mark.parametrize("shape", [{"context": 2}, {"tensor": 2}])
def test_on_a_mesh_the_same_and_weights_are_gathered_before_the_loop(free, shape):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, **shape), CFG.embed)
    compute = replace(EXACT, fuse="yes" if mesh.shape["tensor"] == 1 else "no")
    boxed = jax.eval_shape(lambda: init_params(CFG, jax.random.key(0)))
    places = jax.tree.map(
        lambda names, x: sharding(mesh, tuple(names), x.shape), nn.get_partition_spec(boxed), nn.unbox(boxed)
    )
    params = jax.device_put(weights(), places)
    rows = [jax.device_put(x, sharding(mesh, ("batch", None)[: x.ndim], x.shape)) for x in (PROMPTS, LENGTHS, SEEDS)]
    with jax.set_mesh(mesh):
        run = jitted(compute=compute).lower(params, *rows).compile()
        out = run(params, *rows)
    np.testing.assert_array_equal(out.tokens, free.tokens)
    np.testing.assert_allclose(out.logp, free.logp, atol=2e-5)
    assert out.tokens.sharding.spec[0] == ("data", "fsdp")
    program = HloProgram(run.as_text())
    least = CFG.embed**2 * 4 // mesh.shape["tensor"]  # bytes of the smallest matrix
    assert sum(op.opcode == "all-gather" and op.bytes >= least for op in collectives(program, False)) >= 9
    if mesh.shape["tensor"] == 1:
        # all that devices say to each other while they decode: whether their rows have ended
        said = {op.scope.partition("/while/")[2] for op in collectives(program, True)}
        assert said == {"cond/reduce_and"}


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="max_new_tokens >= 1, got 0"):
        made(max_new_tokens=0)
    with pytest.raises(ValueError, match="repetition_penalty=1"):
        made(sampling=Sample(repetition_penalty=1.1))
