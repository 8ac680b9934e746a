"""Whole runs: resumed = uninterrupted, whatever kills them; what goes wrong says so and loses nothing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import ROOT

from qwenjax import checkpoint
from qwenjax.config import AdamW, Compute, Data, Experiment, ModelConfig, Source, from_dict, to_dict
from qwenjax.jsonl import read_rows
from qwenjax.train.loop import NonFinite, fit

CLOCK = {"tokens_per_second", "seconds_left", "mfu"}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Two hundred short documents of real text: these tests."""
    folder = tmp_path_factory.mktemp("corpus")
    text = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py")))
    pieces = [text[i : i + 700] for i in range(0, 140_000, 700)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return folder


def experiment(corpus, **change) -> Experiment:
    base = Experiment(
        name="tiny",
        model=ModelConfig(vocab=512, layers=1, embed=16, heads=2, ffn=32, context=256),
        data=Data(
            (Source(text=str(corpus / "text.jsonl")),), tokenizer="train:512", length=32, batch=8, eval_tokens=600
        ),
        optim=AdamW(peak=1e-2, warmup=2),
        compute=Compute(dtype="float32", remat="none"),
        steps=12,
        log_every=1,
        eval_every=6,
        save_every=4,
        dropout=0.1,
        prompts=("def ",),
    )
    return replace(base, **change)


def run(experiment, corpus, workdir, **kwargs):
    return fit(experiment, workdir, data_root=corpus / "data", **kwargs)


def state(workdir: Path, step: int) -> dict:
    """Everything a checkpoint holds, as hashes and counters."""
    meta = json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    return {"hashes": meta["hashes"], "next_row": meta["next_row"]}


def numbers(workdir: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(workdir / "metrics.jsonl")]


@pytest.fixture(scope="session")
def uninterrupted(corpus) -> Path:
    workdir = corpus / "uninterrupted"
    outcome = run(experiment(corpus), corpus, workdir)
    assert outcome.finished
    assert outcome.step == 12
    return workdir


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
    change = {"init_from": str(uninterrupted), "steps": 1, "optim": AdamW(peak=1e-30, warmup=0, schedule="constant")}
    outcome = run(experiment(corpus, dropout=0.0, **change), corpus, tmp_path / "run")
    want = [r for r in numbers(uninterrupted) if "eval_loss" in r][-1]["eval_loss"]
    np.testing.assert_allclose(outcome.metrics["eval_loss"], want, rtol=1e-6)
    with pytest.raises(ValueError, match="no checkpoint in"):
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
    with pytest.raises(ValueError, match="of another model"):
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
    wild = experiment(corpus, optim=AdamW(peak=1e38, warmup=0, schedule="constant", clip=1e30), save_every=1)
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


def test_profile_is_recorded(corpus, tmp_path):
    run(experiment(corpus, steps=4), corpus, tmp_path / "run", profile=(1, 3))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


# ---- the command, in processes that are killed ----


def command(corpus, workdir, config_file, limit="", environment=None, arguments=()):
    argv = [sys.executable, "-m", "qwenjax.train", f"--exp={config_file}", f"--workdir={workdir}"]
    argv = ["bash", "-c", f'{limit}exec "$@"', "bash", *argv, f"--data-root={corpus / 'data'}", *arguments]
    common = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(corpus / "xla")}
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stderr=pipe, stdout=pipe, text=True, cwd=ROOT, env=common | (environment or {}))


@pytest.fixture(scope="session")
def killable(corpus):
    """A config file of a run that saves often, and the workdir of its uninterrupted run."""
    path = corpus / "killable.json"
    path.write_text(json.dumps(to_dict(experiment(corpus, steps=30, save_every=3, eval_every=15, sample_every=15))))
    process = command(corpus, corpus / "whole", path)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return path


def wait_for(condition, process, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("moment", ["early", "during a save", "late"])
def test_killed_at_any_moment_and_restarted_ends_bit_identical(killable, corpus, tmp_path, moment):
    workdir, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    moments = {
        "early": lambda: (workdir / "metrics.jsonl").exists(),  # before the first save is whole
        "during a save": lambda: any("tmp" in p.name for p in checkpoints.glob("*")),
        "late": lambda: (checkpoints / "21").is_dir(),
    }
    process = command(corpus, workdir, killable)
    wait_for(moments[moment], process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = command(corpus, workdir, killable)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert state(workdir, 30) == state(corpus / "whole", 30)
    assert numbers(workdir) == numbers(corpus / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_exits_3(killable, corpus, tmp_path, number):
    process = command(corpus, tmp_path / "run", killable)
    wait_for(lambda: len(read_rows(tmp_path / "run" / "metrics.jsonl")) >= 4, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert "the same command goes on" in said
    again = command(corpus, tmp_path / "run", killable)
    again.communicate(timeout=300)
    assert again.returncode == 0
    assert state(tmp_path / "run", 30) == state(corpus / "whole", 30)
    assert numbers(tmp_path / "run") == numbers(corpus / "whole")


def test_a_save_that_fails_stops_the_run(killable, corpus, tmp_path):
    """No file may grow past 20 KB, as on a full disk."""
    process = command(corpus, tmp_path / "run", killable, limit="ulimit -f 20; ")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "\nerror: could not write a checkpoint" in said
    assert "File too large" in said


def two(corpus, workdir, config_file):
    """Two hosts of four devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    hosts = []
    for i in range(2):
        host = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
        host |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "NPROC": "16"}
        host |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
        hosts.append(command(corpus, workdir, config_file, environment=host))
    return hosts


def test_two_processes_train_as_one(killable, corpus, tmp_path):
    """The same losses, and one of them writes."""
    hosts = two(corpus, tmp_path / "run", killable)
    said = [host.communicate(timeout=300)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    rows, whole = numbers(tmp_path / "run"), numbers(corpus / "whole")
    assert len(rows) == len(whole)
    for name in ("loss", "eval_loss"):
        values = [[row[name] for row in metrics if name in row] for metrics in (rows, whole)]
        np.testing.assert_allclose(*values, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_killed_ends_the_other_which_names_it_and_both_resume_bit_identical(
    killable, corpus, tmp_path, victim
):
    """Also: a checkpoint of two is loaded by one process, and one of one by two."""
    short = tmp_path / "short.json"
    plain = from_dict(json.loads(killable.read_text()))
    short.write_text(json.dumps(to_dict(replace(plain, sample_every=0, prompts=()))))
    for host in (whole := two(corpus, tmp_path / "whole", short)):
        host.communicate(timeout=300)
    assert [host.returncode for host in whole] == [0, 0]
    workdir = tmp_path / "run"
    hosts = two(corpus, workdir, short)
    wait_for(lambda: (workdir / "checkpoints" / "6").is_dir(), hosts[victim])
    hosts[victim].send_signal(signal.SIGKILL)
    _, said = hosts[1 - victim].communicate(timeout=60)
    hosts[victim].communicate()
    assert hosts[1 - victim].returncode == 1, said
    assert f"error: process {victim} (" in said.splitlines()[-1]
    shutil.copytree(workdir, tmp_path / "one")
    for host in (again := two(corpus, workdir, short)):
        host.communicate(timeout=300)
    assert [host.returncode for host in again] == [0, 0]
    assert state(workdir, 30) == state(tmp_path / "whole", 30)
    assert numbers(workdir) == numbers(tmp_path / "whole")
    alone = command(corpus, tmp_path / "one", short)
    _, said = alone.communicate(timeout=300)
    assert alone.returncode == 0, said
    losses = [[r["loss"] for r in numbers(w) if "loss" in r] for w in (tmp_path / "one", workdir)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "30")  # now two go on from what one process wrote
    back = two(corpus, tmp_path / "one", short)
    said = [host.communicate(timeout=300)[1] for host in back]
    assert [host.returncode for host in back] == [0, 0], said
    assert "resuming    from step 27" in said[0]


@pytest.mark.slow
def test_a_killed_run_is_started_again_by_its_parent(killable, corpus, tmp_path):
    """--restarts: the training process is killed, not its parent; the run ends as if nothing had happened."""
    workdir = tmp_path / "run"
    parent = command(corpus, workdir, killable, arguments=["--restarts=3"])
    wait_for(lambda: (workdir / "checkpoints" / "6").is_dir(), parent)
    events = (workdir / "events.jsonl").read_text().splitlines()
    os.kill(next(json.loads(e)["pid"] for e in events if "started" in e), signal.SIGKILL)
    _, said = parent.communicate(timeout=300)
    assert parent.returncode == 0, said
    assert "(signal 9); starting again" in said
    assert "in 2 starts" in said
    assert state(workdir, 30) == state(corpus / "whole", 30)


SMALL = [word for field in ("layers=1", "embed=128", "heads=1") for word in ("--set", f"model.{field}")]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--exp=quickstrat"], 2, "Did you mean 'quickstart'"),
        (["--exp=quickstart", "--set", "optim.peek=1"], 2, "Did you mean 'peak'"),
        (["--exp=quickstart", "--set", "steps"], 2, "wanted FIELD=VALUE"),
        (["--exp=quickstart", "--set", "steps=ten"], 2, "wanted a whole number"),
        (["--exp=quickstart", "--profile=9"], 2, "wanted START:STOP"),
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
