"""Predictions against what the compiler said (docs/performance.md), and which settings are tried."""

from dataclasses import replace

import pytest

from qwenjax.config import MeshShape, lookup
from qwenjax.plan import search
from qwenjax.plan.estimate import DoesNotFit
from qwenjax.xla.hardware import parse_topology

GIB = 1 << 30


def with_settings(name, accumulate, remat, fsdp, data):
    experiment = lookup.experiment(name)
    compute = replace(experiment.compute, remat=remat)
    return replace(experiment, accumulate=accumulate, compute=compute, mesh=MeshShape(fsdp=fsdp, data=data))


@pytest.mark.parametrize(
    ("name", "topology", "settings", "gib"),
    [
        ("qwen14b", "v5e-256", (1, "full", 128, 2), 14.67),
        ("qwen7b", "v5e-256", (1, "attn_out", 256, 1), 13.49),
        ("qwen7b", "v5p-256", (2, "matmuls", 64, 2), 54.97),
        ("qwen14b", "v5p-256", (2, "matmuls", 64, 2), 84.22),
        ("qwen1b8", "v5e-256", (2, "matmuls", 128, 2), 12.42),
    ],
)
def test_memory_is_predicted_within_seven_percent(name, topology, settings, gib):
    found = search.predict(with_settings(name, *settings), parse_topology(topology))
    assert found.memory / GIB == pytest.approx(gib, rel=0.07)


def test_more_recomputation_takes_less_memory_and_more_time():
    made = [
        search.predict(with_settings("qwen7b", 1, remat, 256, 1), parse_topology("v5e-256"))
        for remat in ("matmuls", "attention", "attn_out", "full")
    ]
    assert [one.memory for one in made] == sorted((one.memory for one in made), reverse=True)
    assert [one.seconds for one in made] == sorted(one.seconds for one in made)


def test_candidates_divide_evenly_and_keep_a_mesh_that_was_asked_for():
    experiment, topology = lookup.experiment("qwen14b"), parse_topology("v5e-256", slices=2)
    found = search.candidates(experiment, topology)
    assert {one.experiment.mesh.fsdp for one in found} == {128, 64, 32}
    for one in found:
        mesh = one.experiment.mesh.sizes(512, 5120, slices=2)
        assert experiment.data.batch_size % (one.experiment.accumulate * mesh["data"] * mesh["fsdp"]) == 0
    asked = replace(experiment, mesh=MeshShape(data=4, fsdp=128))
    assert {one.experiment.mesh for one in search.candidates(asked, topology)} == {MeshShape(data=4, fsdp=128)}
    assert all(one.experiment.data == experiment.data and one.experiment.optim == experiment.optim for one in found)


def test_an_axis_that_takes_what_is_left_is_one_of_the_sizes():
    experiment, topology = lookup.experiment("qwen1b8"), parse_topology("v5e-16")
    asked, filled = (
        replace(experiment, mesh=mesh) for mesh in (MeshShape(fsdp=4, tensor=4), MeshShape(data=1, fsdp=4, tensor=-1))
    )
    assert search.predict(filled, topology)[1:] == search.predict(asked, topology)[1:]
    assert {one.experiment.mesh.tensor for one in search.candidates(filled, topology)} == {4}


class Made:
    """A plan, as far as a search looks at it."""

    peak_bytes = 1 << 33

    def __init__(self, step_seconds):
        self.step_seconds = step_seconds


def test_a_search_stops_when_enough_fit_and_gives_the_quickest(monkeypatch):
    outcomes = iter([DoesNotFit("it would take 17G"), Made(6.0), DoesNotFit("no"), Made(5.0), Made(1.0)])

    def plan(experiment, topology):
        outcome = next(outcomes)
        if isinstance(outcome, DoesNotFit):
            raise outcome
        return outcome

    monkeypatch.setattr(search, "plan", plan)
    lines = []
    best, made = search.search(lookup.experiment("qwen7b"), parse_topology("v5e-256"), 2, lines.append)
    assert made.step_seconds == 5.0
    assert len(lines) == 4
    assert best.settings in lines[3]
    assert "it would take 17G" in lines[0]


def test_where_nothing_can_fit_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(search, "plan", lambda *_: pytest.fail("compiled"))
    with pytest.raises(DoesNotFit, match="use more chips"):
        search.search(lookup.experiment("qwen14b"), parse_topology("v5e-4"), 1, print)
