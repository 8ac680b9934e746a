"""Whole runs in this process: resumed = uninterrupted; what goes wrong says so and loses nothing."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from runs import experiment, numbers, run, state

from qwenjax import checkpoint
from qwenjax.config import AdamW, from_dict
from qwenjax.train.operations.spikes import NonFinite


def test_a_run_leaves_what_it_promises(uninterrupted):
    rows = numbers(uninterrupted)
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in rows if "eval_bits_per_byte" in r] == [6, 12]
    assert rows[-2]["loss"] < rows[0]["loss"]
    assert (uninterrupted / "loss.png").read_bytes()[:4] == b"\x89PNG"
    report = (uninterrupted / "report.md").read_text()
    assert "gzip -9" in report
    assert "'def '" in report
    assert from_dict(json.loads((uninterrupted / "config.json").read_text())).name == "tiny"
    assert {p.name for p in (uninterrupted / "checkpoints").iterdir() if p.name.isdigit()} == {"4", "8", "12"}
    assert any((uninterrupted / "tokenizer").iterdir())
    assert list((uninterrupted / "tensorboard").glob("events*"))


def test_resumed_run_equals_uninterrupted(uninterrupted, corpus, tmp_path):
    """Stopped after step 8 by taking later files away, as after a kill between two saves."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "report.md").unlink()
    run(experiment(corpus), corpus, workdir)
    assert state(workdir, 12) == state(uninterrupted, 12)
    assert numbers(workdir) == numbers(uninterrupted)  # cut back to step 8, then written again
    assert (workdir / "samples.jsonl").read_text() == (uninterrupted / "samples.jsonl").read_text()
    assert (workdir / "report.md").exists()


def test_damaged_newest_checkpoint_falls_back_and_ends_the_same(uninterrupted, corpus, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    data = max((workdir / "checkpoints" / "12" / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    run(experiment(corpus), corpus, workdir)
    said = capsys.readouterr().err
    assert "step 12 is damaged" in said
    assert "resuming    from step 8" in said
    assert state(workdir, 12) == state(uninterrupted, 12)


def test_finished_run_started_again_only_reports(uninterrupted, corpus, capsys):
    before = state(uninterrupted, 12)
    assert run(experiment(corpus), corpus, uninterrupted).finished
    assert "from step 12" in capsys.readouterr().err
    assert state(uninterrupted, 12) == before


def test_another_mesh_resumes_the_same_run(uninterrupted, corpus, tmp_path):
    """The layout of devices may change; losses then agree to rounding."""
    from qwenjax.config import MeshShape

    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    run(replace(experiment(corpus), mesh=MeshShape(data=2, fsdp=2, tensor=2)), corpus, workdir)
    losses = [[r["loss"] for r in numbers(w) if "loss" in r] for w in (workdir, uninterrupted)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_init_from_takes_parameters_and_starts_afresh(uninterrupted, corpus, tmp_path):
    """A frozen schedule (peak of zero size) shows the parameters that came in."""
    change = {
        "init_from": str(uninterrupted),
        "steps": 1,
        "optim": AdamW(peak_lr=1e-30, warmup_steps=0, schedule="constant"),
    }
    outcome = run(experiment(corpus, dropout=0.0, **change), corpus, tmp_path / "run")
    want = [r for r in numbers(uninterrupted) if "eval_loss" in r][-1]["eval_loss"]
    np.testing.assert_allclose(outcome.metrics["eval_loss"], want, rtol=1e-6)
    with pytest.raises(ValueError, match="no checkpoint"):
        run(experiment(corpus, init_from=str(tmp_path)), corpus, tmp_path / "other")


def test_init_from_takes_a_relative_path_and_names_a_damaged_checkpoint(uninterrupted, corpus, tmp_path, monkeypatch):
    """A run advises `--set init_from=runs/NAME`: a path relative to where the user stands."""
    monkeypatch.chdir(uninterrupted.parent)
    assert run(experiment(corpus, init_from=uninterrupted.name, steps=3), corpus, tmp_path / "run").finished
    broken = tmp_path / "broken"
    shutil.copytree(uninterrupted, broken)
    data = max((broken / "checkpoints" / "12" / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"broken/checkpoints/12 is damaged"):
        run(experiment(corpus, init_from=str(broken)), corpus, tmp_path / "other")


def test_init_from_another_shape_or_tokenizer_is_refused(uninterrupted, corpus, tmp_path):
    wider = experiment(corpus, init_from=str(uninterrupted))
    with pytest.raises(ValueError, match=r"another model than .*: ffn=32 instead of 48"):
        run(replace(wider, model=replace(wider.model, ffn=48)), corpus, tmp_path / "a")
    data = replace(wider.data, tokenizer="train:400")
    with pytest.raises(ValueError, match="another tokenizer"):
        run(replace(wider, data=data), corpus, tmp_path / "b")


def test_workdir_of_another_experiment_is_refused_and_left_alone(uninterrupted, corpus):
    before = (uninterrupted / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds another experiment(.|\n)*seed(.|\n)*--workdir"):
        run(experiment(corpus, seed=1), corpus, uninterrupted)
    assert (uninterrupted / "config.json").read_bytes() == before


def test_a_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(corpus, tmp_path):
    """A learning rate of 1e30 from step 6 on (the end of a constant warm-up) destroys the parameters."""
    wild = experiment(
        corpus, optim=AdamW(peak_lr=1e38, warmup_steps=0, schedule="constant", grad_clip=1e30), save_every=1
    )
    with pytest.raises((NonFinite, FloatingPointError), match=r"not finite"):
        run(wild, corpus, tmp_path / "run")
    saved = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
    for step in saved.steps():
        meta = json.loads((tmp_path / "run" / "checkpoints" / str(step) / "meta" / "metadata").read_text())
        assert meta["step"] == step


def test_too_small_a_vocabulary_is_refused(corpus, tmp_path):
    small = experiment(corpus)
    with pytest.raises(ValueError, match=r"has 512 ids but model.vocab=256; use --set model.vocab=512"):
        run(replace(small, model=replace(small.model, vocab=256)), corpus, tmp_path)


def test_too_little_memory_is_said_before_anything_is_made(corpus, tmp_path):
    from qwenjax import config

    with pytest.raises(ValueError, match=r"needs .*GB per device .*mesh.fsdp"):
        run(replace(experiment(corpus), model=replace(config.QWEN_72B, vocab=512)), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_profile_shows_steps_and_the_wait_for_data(corpus, tmp_path, capsys):
    """As `python -m qwenjax.profile` reads it; and a profile of steps that are over records nothing."""
    from qwenjax.profile import traces

    run(experiment(corpus, steps=4), corpus, tmp_path / "run", profile=(1, 3))
    found = traces.read(traces.find(tmp_path / "run"))
    assert [step.name for step in sorted(found.devices[0].steps, key=lambda step: step.start)] == ["2", "3"]
    assert [event.name for event in found.devices[0].host].count("input") == 2
    run(experiment(corpus, steps=4), corpus, tmp_path / "run", profile=(1, 3))
    assert "nothing recorded: none of the steps 2 to 3 was done" in capsys.readouterr().err


def test_a_profile_that_the_run_ends_in_is_written(corpus, tmp_path):
    run(experiment(corpus, steps=4), corpus, tmp_path / "run", profile=(1, 30))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


SMALL = [word for field in ("layers=1", "embed=128", "heads=1") for word in ("--set", f"model.{field}")]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--exp=quickstrat"], 2, "Did you mean 'quickstart'"),
        (["--exp=quickstart", "--set", "optim.peek=1"], 2, "Did you mean 'peak_lr'"),
        (["--exp=quickstart", "--set", "steps"], 2, "wanted FIELD=VALUE"),
        (["--exp=quickstart", "--set", "steps=ten"], 2, "wanted a whole number"),
        (["--exp=quickstart", "--profile=9"], 2, "wanted START:STOP"),
        (["--exp=quickstart", "--profiler-port=70000"], 2, "wanted 1 to 65535"),
        (["--exp=quickstart", "--processes=2"], 2, "--coordinator and --process missing"),
        (["--exp=qwen1b8", *SMALL], 1, "python -m qwenjax.data tokenize"),
        ([], 2, "--exp"),
    ],
)
def test_bad_usage_names_the_remedy(arguments, code, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qwenjax.train", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_print_config_is_json_and_is_accepted_back(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qwenjax.train", "--exp=qwen14b", "--print-config"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert from_dict(json.loads(done.stdout)).model.params == 14_167_290_880


def test_eight_devices_were_set_up():
    assert len(jax.devices()) == 8
