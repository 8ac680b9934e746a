"""Adapters: identities with the model beneath and with merged weights, what is trained, where it lives."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qwenjax import sharding
from qwenjax.config import Compute, Lora, MeshShape, ModelConfig
from qwenjax.model import lora as adapters
from qwenjax.model import transformer
from qwenjax.model.transformer import Transformer

CFG = ModelConfig(vocab=64, layers=2, embed=32, heads=4, ffn=48, context=64)
FAMILIES = {
    "qwen1": CFG,
    "qwen3": replace(CFG, kv_heads=1, qkv_bias=False, qk_norm=True, head_dim=16, tie_embeddings=True),
}
EXACT = Compute(dtype="float32", remat="none").resolved("cpu", 1)
LORA = Lora(rank=4, alpha=6.0, dropout=0.0, base_dtype="float32")
TOKENS = jax.random.randint(jax.random.key(9), (8, 12), 0, CFG.vocab)


def random(boxed, seed=0):
    """Arrays of all shapes ~ N(0, 0.1), norms around 1, on the host."""
    rng = np.random.default_rng(seed)

    def fill(path, x):
        norm = "norm" in jax.tree_util.keystr(path)
        return (norm + 0.1 * rng.normal(size=x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, nn.unbox(boxed))


@functools.cache
def make(cfg=CFG, lora=LORA):
    """Trained and frozen variables away from their initialisation."""
    params = random(jax.eval_shape(lambda: transformer.init_params(cfg, jax.random.key(0))))
    trained, frozen = jax.jit(lambda p: adapters.split(p, lora))(params)
    pairs = random(jax.eval_shape(lambda: adapters.init(cfg, lora, jax.random.key(0))), seed=1)
    return {**trained, "lora": pairs}, frozen


def without_b(trained):
    """The same adapters with B = 0."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x * (path[-1] != jax.tree_util.DictKey("b")), trained)


@functools.partial(jax.jit, static_argnames=("cfg", "lora", "compute"))
def logits(variables, cfg=CFG, lora=LORA, compute=EXACT, seed=0):
    model = Transformer(cfg, compute, lora=lora)
    hidden, _ = model.apply(variables, TOKENS, rngs={"dropout": jax.random.key(seed)})
    return transformer.logits(variables["params"], hidden)


merge = jax.jit(adapters.merge, static_argnums=1)


@functools.partial(jax.jit, static_argnames=("cfg", "lora", "compute"))
def value_and_grad(trained, frozen, cfg=CFG, lora=LORA, compute=EXACT):
    def loss(trained):
        return jnp.mean(logits(adapters.variables(trained, frozen), cfg, lora, compute) ** 2)

    return jax.value_and_grad(loss)(trained)


def assert_close(got, want, **told):
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        limit = 1e-5 * float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=limit, err_msg=f"{told} {jax.tree_util.keystr(path)}")


def test_with_b_zero_nothing_changes():
    trained, frozen = make()
    want = logits(frozen, lora=None)
    np.testing.assert_array_equal(logits(adapters.variables(without_b(trained), frozen)), want)
    np.testing.assert_array_equal(logits(frozen), want)  # no adapters: the frozen model, as a reference policy is


@pytest.mark.parametrize(("family", "targets"), [("qwen1", LORA.targets), ("qwen3", ("v", "o", "up"))])
def test_merged_weights_give_the_same_logits(family, targets):
    cfg, lora = FAMILIES[family], replace(LORA, targets=targets)
    variables = adapters.variables(*make(cfg, lora))
    merged = merge(variables, lora)
    got = logits(variables, cfg, lora)
    np.testing.assert_allclose(got, logits({"params": merged}, cfg, None), atol=1e-5)
    assert np.abs(got - logits({"params": variables["params"]}, cfg, None)).max() > 0.1


def test_each_target_changes_its_own_weight_only():
    for name, target in adapters.TARGETS.items():
        lora = replace(LORA, targets=(name,))
        variables = adapters.variables(*make(CFG, lora))
        merged = adapters.merge(variables, lora)
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), merged, variables["params"])
        assert [path for path, x in jax.tree_util.tree_flatten_with_path(changed)[0] if x] == [
            tuple(map(jax.tree_util.DictKey, ("blocks", target.module, name)))
        ]


def test_a_merged_model_is_prepared_for_decoding():
    variables = adapters.variables(*make())
    model, prepared = transformer.prepare(Transformer(CFG, EXACT, lora=LORA), merge(variables, LORA))
    hidden, _ = jax.jit(model.apply)({"params": prepared}, TOKENS)
    np.testing.assert_allclose(transformer.logits(prepared, hidden), logits(variables), atol=1e-5)


def test_product_by_hand():
    """One layer, d = 1, rank 2, alpha 4: q gains 4/2 · (3 · 5 + 7 · 11)."""
    cfg = ModelConfig(vocab=2, layers=1, embed=1, heads=1, ffn=1, head_dim=2)
    params = jax.tree.map(jnp.zeros_like, nn.unbox(transformer.init_params(cfg, jax.random.key(0))))
    pair = {"a": jnp.array([[[3.0, 7.0]]]), "b": jnp.array([[[[5.0, 0.0]], [[11.0, 1.0]]]])}
    merged = adapters.merge({"params": params, "lora": {"blocks": {"attn": {"q": pair}}}}, Lora(rank=2, alpha=4.0))
    assert merged["blocks"]["attn"]["q"].tolist() == [[[[2 * (15 + 77), 2 * 7]]]]
    assert not merged["blocks"]["attn"]["k"].any()


def test_gradients_are_those_of_the_merged_model_by_the_chain_rule():
    lora = replace(LORA, base_dtype="nf4", modules_to_save=("embed", "head"))
    trained, frozen = make(CFG, lora)

    def loss(trained):
        merged = adapters.merge(adapters.variables(trained, frozen), lora)
        return jnp.mean(logits({"params": merged}, lora=None) ** 2)

    got, want = value_and_grad(trained, frozen, CFG, lora), jax.jit(jax.value_and_grad(loss))(trained)
    assert_close(got, want)
    assert all(jnp.abs(g).max() > 1e-6 for g in jax.tree.leaves(got[1]))
    assert set(got[1]["params"]) == {"embed", "head"}


@pytest.mark.parametrize(
    ("base", "change"),
    [("float32", {"scan": False, "remat": "matmuls"}), ("nf4", {"fuse": "no", "remat": "full"})],
)
def test_scan_remat_and_fusing_do_not_change_the_result(base, change):
    lora = replace(LORA, base_dtype=base, modules_to_save=("embed",))
    trained, frozen = make(CFG, lora)
    want = value_and_grad(trained, frozen, CFG, lora)
    assert_close(value_and_grad(trained, frozen, CFG, lora, replace(EXACT, **change)), want)


@pytest.mark.parametrize("base", ["float32", "nf4"])
def test_sharded_equals_unsharded(base):
    """FSDP over 4 and tensor over 2 devices, by the axes that the boxes name."""
    lora = replace(LORA, base_dtype=base, modules_to_save=("embed",))
    trained, frozen = make(CFG, lora)
    want = value_and_grad(trained, frozen, CFG, lora)
    mesh = sharding.make_mesh(MeshShape(fsdp=4, tensor=2), CFG.embed)

    def boxes():
        trained, frozen = adapters.split(transformer.init_params(CFG, jax.random.key(0)), lora)
        return {"lora": adapters.init(CFG, lora, jax.random.key(1)), **trained}, frozen

    def place(x, box):
        return jax.device_put(x, sharding.sharding(mesh, box.names, box.value.shape))

    placed = jax.tree.map(place, (trained, frozen), jax.eval_shape(boxes))
    codes = placed[1]["quantised"] or {"blocks": placed[1]["params"]["blocks"]}
    for x in (placed[0]["lora"]["blocks"]["attn"]["q"]["a"], *jax.tree.leaves(codes["blocks"]["mlp"]["gate"])):
        assert x.addressable_shards[0].data.shape[1] == CFG.embed // 4
    compute = replace(EXACT, fuse="no", remat="full")
    with jax.set_mesh(mesh):
        got = jax.device_get(value_and_grad(*placed, CFG, lora, compute))
    assert_close(got, want)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_quantised_base_computes_with_its_dequantised_weights(base):
    lora = replace(LORA, base_dtype=base)
    variables = adapters.variables(*make(CFG, lora))
    plain = merge({name: variables[name] for name in ("params", "quantised")}, lora)
    exact = {"params": plain, "lora": variables["lora"]}
    np.testing.assert_allclose(logits(variables, CFG, lora), logits(exact, CFG, lora), atol=1e-5)
    original = adapters.variables(*make(CFG, LORA))
    off = jnp.std(plain["blocks"]["mlp"]["up"] - original["params"]["blocks"]["mlp"]["up"])
    assert 1e-4 < off / jnp.std(plain["blocks"]["mlp"]["up"]) < (0.01 if base == "int8" else 0.12)


def compiled(cfg, lora, compute):
    """The value and gradient of a step in which adapters are trained, or without `lora` every parameter."""

    def split():
        params = nn.unbox(transformer.init_params(cfg, jax.random.key(0)))
        if lora is None:
            return {"params": params}, {"params": {}}
        trained, frozen = adapters.split(params, lora)
        return {"lora": nn.unbox(adapters.init(cfg, lora, jax.random.key(0))), **trained}, frozen

    return value_and_grad.lower(*jax.eval_shape(split), cfg, lora, compute).compile()


def test_frozen_weights_get_no_gradient_product():
    """A training step is three products per weight, forward, of its input and of itself: the last one falls away."""
    cfg = ModelConfig(vocab=64, layers=1, embed=128, heads=2, ffn=352, context=64)
    compute = replace(EXACT, fuse="no")
    full, low = (compiled(cfg, lora, compute).cost_analysis()["flops"] for lora in (None, replace(LORA, rank=1)))
    assert 0.6 < low / full < 0.75


def test_one_layer_at_a_time_is_dequantised():
    """Even where the backward pass may keep what it likes: remat "none"."""
    cfg = ModelConfig(vocab=64, layers=16, embed=128, heads=2, ffn=352, context=64)
    weights = 4 * (cfg.params - cfg.embedding_params)  # bytes at full width
    memory = compiled(cfg, replace(LORA, rank=1, base_dtype="nf4"), replace(EXACT, fuse="no")).memory_analysis()
    assert memory.argument_size_in_bytes < weights / 4
    kept = 4 * TOKENS.size * cfg.layers * (6 * cfg.embed + 2 * cfg.ffn)  # q, k, v, attention, both inputs; gate, up
    assert memory.temp_size_in_bytes - kept < weights / 4


def test_dropout_is_on_the_adapters_input_and_by_key():
    lora = replace(LORA, dropout=0.4)
    variables = adapters.variables(*make())
    np.testing.assert_array_equal(logits(variables, CFG, lora, seed=1), logits(variables, CFG, lora, seed=1))
    assert np.abs(logits(variables, CFG, lora, seed=1) - logits(variables, CFG, lora, seed=2)).max() > 0.1
    silent = adapters.variables(without_b(make()[0]), make()[1])
    np.testing.assert_array_equal(logits(silent, CFG, lora, seed=1), logits(silent))


def test_fresh_adapters_are_uniform_within_the_inverse_root_of_their_inputs():
    cfg = ModelConfig(vocab=8, layers=3, embed=256, heads=4, ffn=512)
    boxed = jax.jit(lambda: adapters.init(cfg, replace(LORA, rank=16), jax.random.key(0)))()["blocks"]
    for module, name, inputs in (("attn", "q", 256), ("attn", "o", 256), ("mlp", "up", 256), ("mlp", "down", 512)):
        pair = nn.unbox(boxed[module][name])
        assert not pair["b"].any()
        assert 0.99 < float(jnp.abs(pair["a"]).max()) * inputs**0.5 <= 1
        assert abs(float(pair["a"].std()) * (3 * inputs) ** 0.5 - 1) < 0.03  # of a uniform distribution
        assert float(jnp.abs(pair["a"][0] - pair["a"][1]).max()) > 0.01  # layers differ
    assert boxed["attn"]["o"]["a"].names == ("layers", "heads", "head_dim", None)
    assert boxed["attn"]["q"]["b"].names == ("layers", None, "heads", "head_dim")
    assert boxed["mlp"]["down"]["a"].names == ("layers", "ffn", None)
    assert boxed["mlp"]["down"]["b"].names == ("layers", None, "embed")


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8", "nf4"])
def test_split_parts_every_parameter_once(base):
    lora = replace(LORA, base_dtype=base, modules_to_save=("head",))
    trained, frozen = make(CFG, lora)
    assert set(trained["params"]) == {"head"}
    assert "head" not in frozen["params"]
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    assert {x.dtype.name for x in jax.tree.leaves(frozen["params"])} == {"float32" if base == "float32" else "bfloat16"}
    merged = jax.eval_shape(lambda: adapters.merge(adapters.variables({"params": trained["params"]}, frozen), lora))
    assert merged == nn.unbox(jax.eval_shape(lambda: transformer.init_params(CFG, jax.random.key(0))))


def test_what_cannot_be_read_is_refused():
    variables = adapters.variables(*make())
    with pytest.raises(ValueError, match="construct it with `lora`, or merge"):
        logits(variables, CFG, None)
    with pytest.raises(ValueError, match=r"q, k, v do not have the rank of lora\.rank=8"):
        logits(variables, CFG, replace(LORA, rank=8))
    model, prepared = transformer.prepare(Transformer(CFG, EXACT, lora=LORA), variables["params"])
    with pytest.raises(ValueError, match="merge them first"):
        model.apply({"params": prepared, "lora": variables["lora"]}, TOKENS)
    with pytest.raises(ValueError, match="has no head: its head is tied"):
        make(FAMILIES["qwen3"], replace(LORA, modules_to_save=("head",)))
