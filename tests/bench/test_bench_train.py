"""`python -m qwenjax.bench train`: what it reports, and how it fails."""

import json
import sys

import pytest

from qwenjax.bench import train, workers
from qwenjax.bench.__main__ import main
from qwenjax.bench.workers import BenchTurn
from qwenjax.config import lookup

TINY = {
    "model.layers": 1, "model.embed": 16, "model.heads": 2, "model.ffn": 24, "model.vocab": 64, "model.context": 8,
    "data.seq_len": 8, "data.batch_size": 4,
}  # fmt: skip
SHAPE = [f"--set={name}={value}" for name, value in TINY.items()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short turns, and workers with the one device they have in life."""
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.02)
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_rates_are_tokens_over_seconds_and_ratios_are_taken_round_by_round():
    assert lookup.experiment("quickstart", TINY).tokens_per_step == 4 * 8
    assert workers.rate(BenchTurn(steps=5, wall=2.0, cpu=4.0), 32) == 5 * 32 / 2
    assert workers.rate(BenchTurn(steps=5, wall=2.0, cpu=4.0), 32, "cpu") == 5 * 32 / 4
    # the machine halves in the second round, for both: rates 16, 8 against 32, 16 are 0.5 in every round
    slow = [BenchTurn(1, 2.0, 2.0), BenchTurn(1, 4.0, 4.0)]
    fast = [BenchTurn(1, 1.0, 1.0), BenchTurn(1, 2.0, 2.0)]
    assert workers.ratio(slow, fast, "wall") == {"median": 0.5, "low": 0.5, "high": 0.5}


def test_our_step_is_measured_alone(capfd):
    assert main(["train", *SHAPE, "--rounds=1", "--threads=1", "--json"]) == 0
    out, progress = capfd.readouterr()
    result = json.loads(out)
    assert result["params"] == lookup.experiment("quickstart", TINY).model.params
    assert (result["batch"], result["length"], result["threads"]) == (4, 8, 1)
    side = result["ours"]
    for clock in ("tokens_per_second", "tokens_per_cpu_second"):
        assert 0 < side[clock]["low"] <= side[clock]["median"] <= side[clock]["high"]
    assert min(side[name] for name in ("model_tflops", "compile_seconds", "first_step_seconds", "steps")) > 0
    assert not {"torch", "ratio"} & set(result)
    assert "round 1/1, tokens/s: ours" in progress
    lines = train.table(result).splitlines()
    assert lines[-1].split()[:2] == ["ours", f"{side['tokens_per_second']['median']:,.0f}"]


def test_without_torch_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert main(["train", *SHAPE, "--against=torch"]) == 1
    assert "pip install 'qwenjax[parity]'" in capsys.readouterr().err


def test_torch_runs_the_same_model_in_turns(capfd):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    assert main(["train", *SHAPE, "--rounds=2", "--threads=1", "--against=torch", "--set=model.kv_heads=1"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["ours", "torch", "ratio", "by"]


def test_what_goes_wrong_in_a_worker_is_said_by_the_command(capfd):
    assert main(["train", *SHAPE, "--set=optim.warmup_steps=1_000_000"]) == 1
    assert "error: ours: optim.warmup_steps=1000000 leaves no step of" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"), [("--set=model.embd=3", "Did you mean 'embed'?"), ("--set=steps", "wanted FIELD=VALUE")]
)
def test_bad_usage_exits_with_2(wrong, words, capsys):
    assert main(["train", wrong]) == 2
    assert words in capsys.readouterr().err
