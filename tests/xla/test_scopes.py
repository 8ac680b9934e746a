import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.xla import scopes
from qwenjax.xla.scopes import ScopedOp, collective, kind, scope, scoped_ops

HLO = """HloModule jit_f, is_scheduled=true

%inner (p0: f32[8,8]) -> f32[8,8] {
  %p0 = f32[8,8]{1,0:T(8,128)} parameter(0)
  ROOT %dot.1 = f32[8,8]{1,0:T(8,128)} dot(%p0, %p0), metadata={op_name="jit(f)/mlp/ab,bc->ac/dot_general"}
}

%outer (p1: f32[8,8]) -> f32[8] {
  %p1 = f32[8,8]{1,0} parameter(0)
  %nested = f32[8,8]{1,0} fusion(%p1), kind=kOutput, calls=%inner
  ROOT %r = f32[8]{0} reduce(%nested, %c), dimensions={0}, to_apply=%add, metadata={op_name="jit(f)/mlp/reduce_sum"}
}

ENTRY %main.1 (x: f32[8,8]) -> (f32[8]) {
  %x = f32[8,8]{1,0} parameter(0), metadata={op_name="x"}
  %fusion.1 = f32[8]{0} fusion(%x), kind=kOutput, calls=%outer, metadata={op_name="jit(f)/mlp/reduce_sum"}
  %while.2 = (s32[], f32[8,8]{1,0:T(8,128)S(1)}, /*index=2*/f32[]) while(%t), condition=%c, body=%b
  %call.3 = f32[8,8]{1,0} custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(f)/attn/x"}
  ROOT %tuple.1 = (f32[8]{0}) tuple(%fusion.1)
}
"""


def test_a_fusion_is_what_it_holds_and_is_named_by_its_matmul():
    found = scoped_ops(HLO)
    assert found["fusion.1"] == ScopedOp("convolution fusion", "jit(f)/mlp/ab,bc->ac/dot_general")
    assert found["while.2"].category == "while"
    assert found["call.3"] == ScopedOp("custom-call __cudnn$fmhaSoftmax", "jit(f)/attn/x")
    assert kind("call.3", found["call.3"]) == scopes.ATTENTION


def test_a_kernel_whose_metadata_has_line_breaks_keeps_its_scope():
    kernel = '%k.1 = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={a="1\n2"}, '
    text = HLO.replace("  ROOT %tuple.1", f'  {kernel}metadata={{op_name="jit(f)/attn/splash"}}\n  ROOT %tuple.1')
    assert scoped_ops(text)["k.1"] == ScopedOp("custom-call tpu_custom_call", "jit(f)/attn/splash")


def test_a_compiled_function_is_read():
    def f(x):
        with jax.named_scope("mlp"):
            return jnp.sum(jax.nn.relu(x @ x))

    found = scoped_ops(jax.jit(jax.grad(f)).lower(jnp.ones((64, 64))).compile().as_text())
    dots = [op for name, op in found.items() if kind(name, op) == scopes.MATMUL]
    assert dots
    assert {scope(op.scope).path for op in dots} == {"mlp"}
    assert {scope(op.scope).direction for op in dots} == {"forward", "backward"}


@given(st.text())
def test_any_text_is_read_without_an_error(text):
    scoped_ops(f"%c (p: f32[]) -> f32[] {{\n  %a = {text}\n{text}")
    scope(text)
    kind(text, ScopedOp(text, text))


@pytest.mark.parametrize(
    ("name", "category", "path", "expected"),
    [
        ("fusion.7", "convolution fusion", "", scopes.MATMUL),
        ("fusion.7", "output fusion", "", scopes.MATMUL),
        ("dot_general.8", "dot", "", scopes.MATMUL),
        (
            "fusion.7",
            "loop fusion",
            "jit(f)/attn/mul",
            scopes.MEMORY,
        ),  # element-wise work beside attention is no kernel
        ("copy.1", "copy", "", scopes.MEMORY),
        ("copy.1", "data formatting", "", scopes.MEMORY),
        ("custom-call.2", "custom-call", "jit(f)/blocks/attn/splash_attention", scopes.ATTENTION),
        ("custom-call.2", "custom-call tpu_custom_call", "jit(f)/mlp/gmm", scopes.KERNEL),
        ("custom-call.2", "custom-call __cublas$gemm", "", scopes.MATMUL),
        ("fusion.9", "custom fusion", "jit(f)/mlp/x", scopes.KERNEL),
        ("while.1", "while", "", scopes.CONTROL),
        ("infeed.1", "infeed", "", scopes.TRANSFER),
        ("send-done.1", "send-done", "", scopes.TRANSFER),
        ("MemcpyD2H", "", "", scopes.TRANSFER),
        ("MemcpyD2D", "", "", scopes.MEMORY),
        ("ynn_fusion.4", "", "", scopes.UNKNOWN),
        ("nvjet_tst_128x256", "", "", scopes.MATMUL),
        ("cudnn_generated_fort_native_sdpa_sm90", "", "", scopes.ATTENTION),
        ("reduce-scatter.4", "reduce-scatter", "", "reduce-scatter"),
        ("fusion.4", "all-reduce fusion", "", "all-reduce"),
        ("all-gather-start.2", "", "", "all-gather"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgs)", "", "", "reduce-scatter"),
        ("ncclDevKernel_SendRecv(x)", "", "", "collective-permute"),
    ],
)
def test_kinds(name, category, path, expected):
    assert kind(name, ScopedOp(category, path)) == expected


def test_what_only_sounds_like_a_collective_is_none():
    assert collective("reduce.4", "reduce") == collective("gather.1") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "jit(f)/jvp(Net)/closed_call/blocks/mlp/btf,df->btd/dot_general",
            ("Net/blocks/mlp", "btf,df->btd", "forward"),
        ),
        ("jit(f)/transpose(jvp(Net))/while/body/blocks/add_any", ("Net/blocks", "add_any", "backward")),
        ("jit(f)/transpose(jvp(Net))/checkpoint/rematted_computation/mlp/mul:", ("Net/mlp", "mul", "recompute")),
        ("jit(f)/jvp(Net)/blocks/attn/jit(_where)/select_n", ("Net/blocks/attn", "select_n", "forward")),
        ("jit(f)/mul;jit(f)/add", ("", "mul", "")),
        ("jit(f)/jvp()/while/body/closed_call/td,dv->tv/dot_general", ("", "td,dv->tv", "forward")),
        (
            "jit(f)/transpose(jvp(Net))/blocks/(attn/dot_general:mlp/a,ab->b/dot_general)",
            ("Net/blocks", "2 combined", "backward"),
        ),
        ("jit(f)/(transpose(jvp(Net))/add:jvp()/add:mul)", ("", "3 combined", "")),
        ("", ("", "", "")),
    ],
)
def test_scopes_are_as_the_model_says_them(text, expected):
    assert scope(text) == expected
