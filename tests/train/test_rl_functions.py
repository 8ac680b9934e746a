"""Scores from a Python function: what it may do, and that nothing is lost when it does something else."""

import numpy as np
import pytest
from align_doubles import LETTERS, numbers, rl_stage, run, saved

from qwenjax.train import __main__ as command
from qwenjax.train.rl.reward_function import RewardFailed, RewardFunction


@pytest.fixture(scope="session")
def grpo(chats, sft, letters):
    assert run(rl_stage(chats, "grpo", sft, letters, steps=3), chats, chats / "grpo").finished
    return chats / "grpo"


def test_a_function_that_raises_ends_the_run_and_the_mended_one_goes_on_to_the_same(chats, sft, grpo, tmp_path):
    file = tmp_path / "letters.py"
    count = tmp_path / "count"
    third = f"    with open({str(count)!r}, 'a+') as f: f.write('.'); f.seek(0); n = len(f.read())\n"
    third += "    if n == 3: raise KeyError('no such key')\n"
    file.write_text(LETTERS.replace("    assert all(turns", third + "    assert all(turns", 1))
    spec = f"{file}:letters"
    experiment = rl_stage(chats, "grpo", sft, spec, steps=3)
    with pytest.raises(RewardFailed, match=r"letters.py:letters raises KeyError: 'no such key'"):
        run(experiment, chats, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"1", "2"}
    file.write_text(LETTERS)
    assert run(experiment, chats, tmp_path / "run").finished
    ours, theirs = saved(tmp_path / "run", 3), saved(grpo, 3)
    assert ours["hashes"] == theirs["hashes"]
    assert numbers(tmp_path / "run") == numbers(grpo)


def test_a_function_that_fails_at_once_leaves_a_run_to_resume(chats, sft, grpo, tmp_path):
    file = tmp_path / "letters.py"
    file.write_text("def letters(prompts, responses, answers):\n    return [float('nan')] * len(responses)\n")
    experiment = rl_stage(chats, "grpo", sft, f"{file}:letters", steps=3)
    with pytest.raises(RewardFailed, match="gives nan, which is no finite number, for the response"):
        run(experiment, chats, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()
    file.write_text(LETTERS)
    assert run(experiment, chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 3)["hashes"] == saved(grpo, 3)["hashes"]


FUNCTIONS = """
import jax.numpy as jnp, numpy as np, os, sys, time
def raises(p, r, a): return 1 / 0
def leaves(p, r, a): sys.exit("bye")
def dies(p, r, a): os._exit(7)
def hangs(p, r, a): time.sleep(60)
def few(p, r, a): return [1.0]
def none(p, r, a): return None
def nan(p, r, a): return [1.0, np.nan]
def inf(p, r, a): return np.array([np.inf, 0])
def huge(p, r, a): return [1e300, 0]
def text(p, r, a): return ["1", 0]
def bools(p, r, a): return [True, 2]
def numpys(p, r, a): return np.float32([0.7, 1])
def arrays(p, r, a): return jnp.array([0.7, 1.0])
def given(p, r, a): return [len(p[0]) + len(r[0]), float(a[0] is None)]
"""
EXAMPLES = [{"prompt": [{"role": "user", "content": "a"}], "answer": None}] * 2


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Calls a function of FUNCTIONS; the processes end with the module."""
    file = tmp_path_factory.mktemp("functions") / "f.py"
    file.write_text(FUNCTIONS)
    started = []

    def run_function(name: str, timeout: float = 60.0) -> np.ndarray:
        started.append(RewardFunction(f"{file}:{name}", "rl.reward", timeout))
        return started[-1](EXAMPLES, ["b", "c"])

    yield run_function
    for function in started:
        function.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"the function rl.reward=.*f.py:raises raises ZeroDivisionError"),
        ("leaves", r"raises SystemExit: bye"),
        ("dies", r"ended its process \(exit code 7\)"),
        ("few", r"gives 1 scores for 2 responses"),
        ("none", r"raises TypeError"),
        ("nan", r"gives nan, which is no finite number, for the response 'c'"),
        ("inf", r"gives inf, which is no finite number"),
        ("huge", r"gives 1e.300, which is no finite number"),
        ("text", r"gives '1', which is no finite number"),
    ],
)
def test_what_a_function_may_not_do(call, name, message):
    with pytest.raises(RewardFailed, match=message):
        call(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "want"), [("bools", [1, 2]), ("numpys", [0.7, 1]), ("arrays", [0.7, 1]), ("given", [2, 1])]
)
def test_numbers_of_any_kind_are_scores(call, name, want):
    found = call(name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.float32(want))


def test_a_function_that_hangs_is_given_up(call):
    with pytest.raises(RewardFailed, match=r"f.py:hangs has not answered within 0.05 seconds"):
        call("hangs", timeout=0.05)


def test_a_failure_is_exit_code_1_and_a_line(monkeypatch, capsys, tmp_path):
    def fails(*rest, **more):
        raise RewardFailed("the reward function f.py:f raises KeyError: 'x'")

    monkeypatch.setattr("qwenjax.train.loop.fit", fails)
    monkeypatch.setattr("qwenjax.common.command_line.keep_programs", lambda: None)
    assert command.main(["--exp=tiny_ppo", f"--workdir={tmp_path}"]) == 1
    assert capsys.readouterr().err.endswith("error: the reward function f.py:f raises KeyError: 'x'\n")
