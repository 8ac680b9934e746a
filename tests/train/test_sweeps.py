"""Variants beside each other, and a measurement of one of them, as notebooks ask for them."""

import math

import pytest
import runs
from IPython.core.formatters import DisplayFormatter

import qwenjax
from qwenjax import sweeps
from qwenjax.common.jsonl import read_rows
from qwenjax.train.loop import RewardFailed
from qwenjax.train.operations.spikes import Diverged

VARIANTS = {"untied": {}, "tied": {"model.tie_embeddings": True}}


@pytest.fixture(scope="module")
def swept(corpus):
    base = runs.experiment(corpus, steps=4, eval_every=2, sample_every=0, prompts=())
    found = qwenjax.sweep(base, VARIANTS, seeds=(0, 1), workdir=corpus / "sweep", data_root=corpus / "data")
    return base, corpus, found


def test_every_variant_has_every_seed_in_a_folder_of_its_own(swept):
    _, corpus, found = swept
    assert [(run.variant, run.seed) for run in found.runs] == [("untied", 0), ("untied", 1), ("tied", 0), ("tied", 1)]
    assert found.runs[3].workdir == corpus / "sweep" / "tied" / "seed1"
    assert qwenjax.experiment(str(found.runs[2].workdir)).model.tie_embeddings
    assert "step 4" in (found.runs[0].workdir / "log.txt").read_text()
    losses = found.values("eval_loss")
    assert losses["untied"][1] == read_rows(found.runs[1].workdir / "metrics.jsonl")[-1]["eval_loss"]
    assert len({loss for of in losses.values() for loss in of}) == 4  # seeds and variants differ


def test_what_is_finished_is_not_run_again_unless_it_is_another(swept, monkeypatch):
    base, corpus, found = swept
    again = []
    monkeypatch.setattr("qwenjax.train.loop.fit", lambda experiment, workdir, **_: again.append(workdir))
    where = {"workdir": corpus / "sweep", "data_root": corpus / "data"}
    assert qwenjax.sweep(base, VARIANTS, (0, 1), **where).table("eval_loss") == found.table("eval_loss")
    assert not again
    with pytest.raises(AttributeError):  # the double gives no outcome
        qwenjax.sweep(base, {"tied": {"model.tie_embeddings": True, "steps": 6}}, (0,), **where)
    assert again == [corpus / "sweep" / "tied" / "seed0"]


def test_the_table_has_mean_and_deviation():
    assert sweeps.spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert sweeps.spread([8100.0, 9300.0]) == "8700 ± 849"
    assert sweeps.spread([1.8301, 1.8322]) == "1.8312 ± 0.0015"
    assert sweeps.spread([1.0]) == sweeps.spread([1.0, 1.0]) == "1"


def test_the_picture_is_drawn(swept, tmp_path):
    _, _, found = swept
    with pytest.raises(ValueError, match="nothing to plot"):
        found.plot()
    figure = found.plot("eval_loss", "loss", path=tmp_path / "curves.png", skip=0.5)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert DisplayFormatter().format(figure)[0]["image/png"].startswith(b"\x89PNG")  # as a notebook asks
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == list(VARIANTS)
    assert list(lines[0].get_xdata()) == [2, 4]
    first = [run.last("eval_loss") for run in found.runs[:2]]
    assert math.isclose(lines[0].get_ydata()[-1], sum(first) / 2)


@pytest.mark.parametrize(
    ("variants", "seeds", "message"),
    [
        ({}, (0,), "at least one variant"),
        ({"a": {}}, (), "and one seed"),
        ({"a/b": {}}, (0,), "is the name of a folder"),
        ({"good": {}, "bad": {"model.layer": 1}}, (0,), "Did you mean 'layers'"),
        ({"other": {"seed": 3}}, (0,), "variant 'other' sets a seed"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_runs(variants, seeds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        qwenjax.sweep("quickstart", variants, seeds, workdir=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_number_that_no_run_has_is_named(swept):
    with pytest.raises(ValueError, match=r"no metric 'eval_los'; it has eval_bits_per_byte, eval_loss"):
        swept[2].table("eval_los")


def test_a_run_that_fails_says_which_and_why(corpus, tmp_path):
    base = runs.experiment(corpus)
    with pytest.raises(ValueError, match=r"lost, seed 0: .*log.txt"):
        qwenjax.sweep(base, {"lost": {"init_from": tmp_path / "absent"}}, (0,), tmp_path, data_root=corpus / "data")


@pytest.mark.parametrize("kind", [RewardFailed, Diverged])
def test_whatever_ends_a_run_is_said_with_its_name(kind, corpus, tmp_path, monkeypatch):
    def fit(*_, **more):
        raise kind("the judge is gone")

    monkeypatch.setattr("qwenjax.train.loop.fit", fit)
    with pytest.raises(ValueError, match=r"lost, seed 0: the judge is gone \(see .*log.txt"):
        qwenjax.sweep(runs.experiment(corpus), {"lost": {}}, (0,), tmp_path, data_root=corpus / "data")


def test_runs_of_a_sweep_are_measured_once(swept, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x\n" * 40)
    asked = {"text": str(text), "lengths": (8, 32), "tokens": 32}
    first = swept[2].evaluate("table3", **asked)
    logs = {run.workdir: (run.workdir / "eval" / "parts.jsonl").read_text() for run in swept[2].runs}
    assert [one.result for one in swept[2].evaluate("table3", **asked)["tied"]] == [one.result for one in first["tied"]]
    assert logs == {folder: (folder / "eval" / "parts.jsonl").read_text() for folder in logs}


def test_a_run_of_a_sweep_is_evaluated(swept, tmp_path):
    run = swept[2].runs[0]
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x\n" * 40)
    found = qwenjax.evaluate(run.workdir, "table3", tmp_path, text=str(text), lengths=(8, 32), tokens=32, ntk=True)
    assert found.result["set"] == ["ntk=True"]
    assert set(found.result["rows"]["plain"]) == {"8", "32"}
    assert found.png.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table3.txt").read_text() == found.text + "\n"
    with pytest.raises(ValueError, match="no table or task"):
        qwenjax.evaluate(run.workdir, "table9")
