"""`python -m qwenjax.bench decode`: what it reports, and how it fails."""

import json
import sys

import jax
import pytest
from flax import linen as nn

from qwenjax.bench import decode, workers
from qwenjax.bench.__main__ import main
from qwenjax.bench.decode import Case
from qwenjax.bench.workers import BenchTurn
from qwenjax.config import ModelConfig
from qwenjax.interop.huggingface.save import save_params
from qwenjax.model import transformer

SHORT = ["--prefill=16", "--prompt=4", "--max-new-tokens=4", "--rounds=1", "--threads=1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = ModelConfig(vocab=96, layers=1, embed=16, heads=2, kv_heads=1, ffn=24, context=64)
    params = jax.jit(lambda key: nn.unbox(transformer.init_params(config, key)))(jax.random.key(0))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_params(config, params, folder)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short turns, and workers with the one device they have in life."""
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.01)
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_a_case_counts_the_tokens_written_or_if_one_is_written_those_read():
    prefill, one, eight = decode.prefill_and_decode_cases(prefill=512, prompt=32, max_new_tokens=64)
    assert (prefill.tokens, one.tokens, eight.tokens) == (512, 64, 8 * 64)
    turn = BenchTurn(steps=3, wall=2.0, cpu=4.0)
    assert workers.rate(turn, eight.tokens) == 3 * 512 / 2
    assert workers.rate(turn, eight.tokens, "cpu") == 3 * 512 / 4


def test_ratios_are_taken_round_by_round():
    # the machine halves in the second round, for both; ours does twice as many calls in the same time
    ours, theirs = [BenchTurn(4, 2.0, 2.0), BenchTurn(2, 2.0, 2.0)], [BenchTurn(2, 2.0, 4.0), BenchTurn(1, 2.0, 4.0)]
    assert workers.ratio(ours, theirs, "wall") == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert workers.ratio(ours, theirs, "cpu") == {"median": 4.0, "low": 4.0, "high": 4.0}


def test_agreement_is_the_share_before_the_first_difference():
    assert decode._shared_prefix([[1, 2, 3, 4], [1, 2, 3, 4]], [[1, 2, 3, 4], [1, 9, 3, 4]]) == (1 + 1 / 4) / 2


def test_a_turn_takes_its_case_in_the_quickest_way(monkeypatch):
    asked = []
    monkeypatch.setattr(decode, "_timed", lambda write, case: (write(case), [[0]]))

    def way(seconds):
        return lambda case: asked.append((case.name, seconds[case.name])) or seconds[case.name]

    cases = [Case("a", 1, 1, 2), Case("b", 1, 1, 2)]
    facts, run = decode._fastest_way(cases, [way({"a": 3.0, "b": 3.0}), way({"a": 1.0, "b": 5.0})])
    assert facts["seconds"] == (1.0, 3.0)
    asked.clear()
    for case, calls in ((0, 1), (1, 2), (0, 1)):
        run(case, calls)
    assert asked == [("a", 1.0), ("b", 3.0), ("b", 3.0), ("a", 1.0)]


def test_our_side_is_measured_alone(checkpoint, capfd):
    assert main(["decode", f"--model={checkpoint}", *SHORT, "--json"]) == 0
    out, progress = capfd.readouterr()
    result = json.loads(out)
    assert [case["batch"] for case in result["cases"]] == [1, 1, 8]
    for title in ("tokens_per_second", "tokens_per_cpu_second"):
        assert all(0 < rate["low"] <= rate["median"] <= rate["high"] for rate in result["ours"][title])
    assert not {"transformers", "ratio"} & set(result)
    assert "round 1/1, tokens/s: ours" in progress
    assert [line.split()[0] for line in decode.table(result).splitlines()[-3:]] == ["prefill,", "decode,", "decode,"]


def test_transformers_writes_the_same_in_turns(checkpoint, capfd):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    assert main(["decode", f"--model={checkpoint}", *SHORT, "--against=transformers", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["same_tokens"] == 1
    assert result["ours"]["params"] == result["transformers"]["params"]
    assert sum(line.split()[0] == "ratio" for line in decode.table(result).splitlines() if line) == 3


def test_without_torch_the_command_says_what_to_install(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert main(["decode", f"--model={checkpoint}", "--against=transformers"]) == 1
    assert "pip install 'qwenjax[parity]'" in capsys.readouterr().err


def test_what_goes_wrong_is_said(tmp_path, capfd):
    assert main(["decode", f"--model={tmp_path / 'gone'}", *SHORT]) == 1
    assert "error: ours: no checkpoint at" in capfd.readouterr().err
    assert main(["decode", f"--model={tmp_path / 'gone'}", "--max-new-tokens=1"]) == 2
