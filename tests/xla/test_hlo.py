"""Costs of HLO text, against sums worked by hand."""

import pytest

from qwenjax.xla.costs import BETWEEN_SLICES, program_costs
from qwenjax.xla.hlo import HloProgram, group_size, type_bytes

CONFIG = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
# A loop of 3 trips around a matmul [8 16] x [16 4] in a fusion (100 cycles), an exposed all-reduce of 32 floats over 4
# devices and a kernel; then a matmul outside (1000 cycles) and a gather that is started early.
TEXT = f"""HloModule step, is_scheduled=true

FileNames
1 "/checkout/qwenjax/model/layers.py"
2 "/somewhere/jax/core.py"

FunctionNames
1 "project"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=47 end_line=47 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=1 line=9 end_line=9 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=1}}

%fused (a: f32[8,16], b: f32[16,4]) -> f32[8,4] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  %b = f32[16,4]{{1,0}} parameter(1)
  ROOT %dot.1 = f32[8,4]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}}

%body (p: (s32[], f32[8,16], f32[16,4])) -> (s32[], f32[8,16], f32[16,4]) {{
  %p = (s32[], f32[8,16]{{1,0}}, f32[16,4]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %left = f32[8,16]{{1,0}} get-tuple-element(%p), index=1
  %right = f32[16,4]{{1,0}} get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one), {CONFIG % 2}
  %fusion.7 = f32[8,4]{{1,0}} fusion(%left, %right), kind=kOutput, calls=%fused, metadata={{op_name="jit(step)/mlp" stack_frame_id=2}}, {CONFIG % 100}
  %all-reduce.1 = f32[8,4]{{1,0}} all-reduce(%fusion.7), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %flash_fwd.3 = f32[8,4]{{1,0}} custom-call(%all-reduce.1), custom_call_target="tpu_custom_call"
  ROOT %out = (s32[], f32[8,16]{{1,0}}, f32[16,4]{{1,0}}) tuple(%next, %left, %right)
}}

%condition (q: (s32[], f32[8,16], f32[16,4])) -> pred[] {{
  %q = (s32[], f32[8,16]{{1,0}}, f32[16,4]{{1,0}}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %three), direction=LT
}}

ENTRY %main (w: f32[8,16], v: f32[16,4]) -> f32[8,4] {{
  %w = f32[8,16]{{1,0}} parameter(0)
  %v = f32[16,4]{{1,0}} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16]{{1,0}}, f32[16,4]{{1,0}}) tuple(%zero, %w, %v)
  %while.1 = (s32[], f32[8,16]{{1,0}}, f32[16,4]{{1,0}}) while(%start), condition=%condition, body=%body
  %all-gather-start.1 = (bf16[16,4]{{1,0}}, bf16[64,4]{{1,0}}) all-gather-start(%v), channel_id=2, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
  %all-gather-done.1 = bf16[64,4]{{1,0}} all-gather-done(%all-gather-start.1), channel_id=2
  %reduce-scatter.1 = f32[2,4]{{1,0}} reduce-scatter(%v), channel_id=3, replica_groups=mesh['a'=8,'b'=2], device_ids=([16]) {{'a'}}, to_apply=%add
  ROOT %dot.2 = f32[8,4]{{1,0}} dot(%w, %v), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, {CONFIG % 1000}
}}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return HloProgram(TEXT)


def test_loops_count_by_their_trips(program):
    found = program_costs(program)
    assert found.matmul_flops == 2 * 8 * 16 * 4 * (3 + 1)
    assert found.cycles == 3 * (100 + 2) + 1000
    assert found.kernels == {"flash_fwd": 3}


def test_collectives_by_kind_size_and_group(program):
    found = {c.kind: (c.bytes, c.trips, c.group, c.hidden) for c in program_costs(program).collectives}
    assert found == {
        "all-reduce": (8 * 4 * 4, 3, 4, False),
        "all-gather": ((16 * 4 + 64 * 4) * 2 / 2, 1, 4, True),
        "reduce-scatter": (2 * 4 * 4 * 8, 1, 8, False),  # what is put in, of all eight
    }


def part(name: str, target: str = "", space: str = "") -> str:
    """A fused computation that has one part of a gather on channel 5."""
    custom = f'  %c = u32[] custom-call(), custom_call_target="{target}"\n' if target else ""
    gather = f"bf16[64,4]{{1,0{space}}} all-gather(%v), channel_id=5, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}"
    return f"%{name} (v: bf16[16,4]) -> bf16[64,4] {{\n{custom}  ROOT %gather.{name} = {gather}\n}}\n\n"


def test_a_collective_that_runs_in_parts_counts_where_it_starts():
    """Others of its parts are in the body of a loop, or in another memory."""
    step = "  %fusion.9 = bf16[64,4]{1,0:S(1)} fusion(%left), kind=kOutput, calls=%step\n  ROOT %out"
    around = "  %{0}.9 = bf16[64,4]{{1,0}} fusion(%v), kind=kCustom, calls=%{0}\n"
    parts = part("begin", "AsyncCollectiveStart") + part("step", space=":S(1)") + part("end", "AsyncCollectiveDone")
    text = TEXT.replace("  ROOT %out", step).replace("%body (p", parts + "%body (p")
    text = text.replace("  %while.1", around.format("begin") + "  %while.1")
    text = text.replace("  %all-gather-start.1", around.format("end") + "  %all-gather-start.1")
    found = [
        (c.bytes, c.trips, c.hidden)
        for c in program_costs(HloProgram(text)).collectives
        if c.type.startswith("bf16[64,4]")
    ]
    assert found == [(64 * 4 * 2, 1, True)]


def test_copies_of_a_collective_that_share_its_channel_all_count():
    """As those of two layers do, where the compiler unrolled the loop over them."""
    first = next(line for line in TEXT.split("\n") if "%all-reduce.1 =" in line)
    text = TEXT.replace(first, f"{first}\n{first.replace('all-reduce.1', 'all-reduce.2', 1)}")
    assert [c.trips for c in program_costs(HloProgram(text)).collectives if c.kind == "all-reduce"] == [3, 3]


def test_a_known_trip_count_is_believed():
    known = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert program_costs(HloProgram(known)).kernels == {"flash_fwd": 7}


def test_a_counter_that_steps_by_more():
    assert program_costs(HloProgram(TEXT.replace("constant(1)", "constant(2)"))).kernels == {"flash_fwd": 2}


def test_what_slices_send_each_other_is_one_collective():
    sent = """  %send.1 = (bf16[64,4]{1,0}, u32[], token[]) send(%v), channel_id=9, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
"""
    text = TEXT.replace("  %all-gather-start.1", sent + "  %all-gather-start.1")
    found = [c for c in program_costs(HloProgram(text)).collectives if c.kind == BETWEEN_SLICES]
    assert [(c.bytes, c.trips, c.hidden) for c in found] == [(64 * 4 * 2 + 4, 1, True)]


def test_the_scope_of_an_instruction(program):
    scopes = {op.name: op.scope for op in program.executed()}
    assert (scopes["fusion.7"], scopes["dot.2"]) == ("jit(step)/mlp", "")


def test_types_and_groups():
    assert type_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, /*index=5*/f32[4], s32[])") == 12 + 16 + 4
    assert type_bytes("f8e4m3fn[8]") == 8
    assert type_bytes("token[]") == 0
    assert group_size("replica_groups={{0,1},{2,3}}, x") == 2
    assert group_size("replica_groups=[32,8]<=[256]") == 8
    assert group_size("replica_groups=mesh['x'=128,'y'=2,'z'=2], device_ids=([512]) {'x','z'}") == 256
    assert group_size("no groups") == 1


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        HloProgram("HloModule nothing\n")
