"""The command, and the TPU compiler where it is installed (pip install 'qwenjax[tpu-aot]'): in processes of their own,
since a process that has it looks for TPUs.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from qwenjax.plan.__main__ import main

compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu-aot'")
SMALL = [
    *("--set=model.layers=2", "--set=model.embed=256", "--set=model.heads=2", "--set=model.ffn=512"),
    *("--set=model.vocab=1024", "--set=data.seq_len=256", "--set=data.batch_size=16", "--set=compute.loss_chunk=256"),
]


def planned(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "qwenjax.plan", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@compiler
def test_a_small_model_on_eight_chips():
    done = planned("--exp=qwen1b8", "--topology=v5e-8", "--json", "--price=2", *SMALL)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["attention"] == "splash"  # its forward and backward kernels compile
    assert plan["chips"] == 8
    assert sum(plan["memory_bytes"].values()) == plan["peak_bytes"] < 16 << 30
    assert plan["step_seconds"] == pytest.approx(sum(plan["seconds"].values()))
    assert plan["cost"] == pytest.approx(2 * plan["chip_hours"])
    # forward, backward (2) and recomputed (1) products of the layers; three of the head
    tokens, d, f, vocab, layers = 16 * 256 / 8, 256, 512, 1024, 2
    layer = 4 * d * d + 3 * d * f
    expected = 2 * tokens * (4 * layers * layer - layers * d * f + 3 * d * vocab)  # the last product is not recomputed
    assert plan["matmul_flops"] == pytest.approx(expected, rel=0.1)


@compiler
def test_two_slices_share_gradients_over_their_own_network():
    done = planned("--exp=qwen1b8", "--topology=v5e-8", "--slices=2", "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["mesh"] == {"data": 2, "fsdp": 8, "tensor": 1, "context": 1}
    sent = plan["collectives"]["all-reduce between slices, beside compute"]["gb"]
    # what a chip holds of the layers' gradients goes over in bfloat16 or float32, once
    layers = 2 * (4 * 256 * 256 + 3 * 256 * 512)
    assert 2 * layers / 8 <= sent * 1e9 <= 8 * (layers + 2 * 256 * 1024) / 8
    assert not any("over 16" in name for name in plan["collectives"] if "gather" in name)  # parameters stay inside


@compiler
def test_what_does_not_fit_is_said_with_what_would():
    words = ("--set=data.batch_size=4", "--set=data.seq_len=128", "--set=compute.loss_chunk=128")
    done = planned("--exp=qwen7b", "--topology=v5e-4", *words)
    assert done.returncode == 1, done.stderr
    assert "does not fit on v5e-4: it would take" in done.stdout
    assert "no setting is likely to fit" in done.stdout or "--set accumulate=" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--exp=qwen7b", "--topology=v5e-3"], "wanted a power of two"),
        (["--exp=qwen7", "--topology=v5e-4"], "no experiment 'qwen7'"),
    ],
)
def test_bad_usage(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the compiler is installed")
def test_without_the_compiler_it_says_what_to_install():
    done = planned("--exp=qwen1b8", "--topology=v5e-4")
    assert done.returncode == 1
    assert "pip install 'qwenjax[tpu-aot]'" in done.stderr
