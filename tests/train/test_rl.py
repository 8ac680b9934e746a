"""Reinforcement learning as whole runs and whole iterations: what is frozen, what is resumed, what goes wrong."""

import base64
import json
import os
import shutil
import signal
from dataclasses import replace

import align_doubles
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny_model
from align_doubles import column, kept_programs, numbers, rl_stage, run, saved, task_of, texts

from qwenjax.config import Chat, ChatFile, Data, Lora, Recovery, to_dict
from qwenjax.train import __main__ as command
from qwenjax.train.rl import scores
from qwenjax.train.rl.scores import Failed
from qwenjax.train.step import UNLIMITED

LETTERS = """
def letters(prompts, responses, answers):
    assert all(turns[-1]["role"] == "user" for turns in prompts)
    assert all(answer and turns[-1]["content"].startswith(answer) for turns, answer in zip(prompts, answers))
    return [float(response[:1] == "i") + 0.01 * len(response) for response in responses]
"""


@pytest.fixture(scope="session")
def letters(chats) -> str:
    """A reward function: 1 for what begins as "if" does, and a little for length."""
    (chats / "letters.py").write_text(LETTERS)
    return f"{chats / 'letters.py'}:letters"


def ppo_of(chats, sft, rm, **change):
    data = Data(texts(chats), tokenizer="init_from", length=48, batch=16, eval_tokens=600)
    return rl_stage(chats, "ppo", sft, rm, **({"ptx": 0.5, "ptx_rows": 8, "kl_target": 1.0, "data": data} | change))


@pytest.fixture(scope="session")
def ppo(chats, sft, rm):
    """The workdir of a finished run: the value model alone in the first of four iterations, then both, with text."""
    assert run(ppo_of(chats, sft, rm), chats, chats / "ppo").finished
    return chats / "ppo"


@pytest.fixture(scope="module")
def iterated(chats, sft, rm, ppo):
    """The task of that run, and its states after 0, 1, … 4 iterations, on the host; and how often it compiled in each."""
    with kept_programs(chats):
        task = task_of(ppo_of(chats, sft, rm), chats)
        state, compiled, counts = task.begin(lambda text: None), [], []
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, seconds, **rest: compiled.append(name) if "backend_compile" in name else None
        )
        states, stream = [jax.device_get(state)], task.batches(0)
        for _ in range(4):
            compiled.clear()
            state, _ = task.program.step(state, next(stream)[1], UNLIMITED)
            states.append(jax.device_get(state))
            counts.append(len(compiled))
        stream.close()
    return task, states, counts


# ---- one run ----


def test_a_run_leaves_what_it_promises(ppo):
    rows = numbers(ppo)
    assert [row["step"] for row in rows if "score" in row] == [1, 2, 3, 4]
    assert "| score |" in (ppo / "report.md").read_text()
    assert (ppo / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert {"eval_score", "eval_kl", "eval_length", "eval_ended", "eval_unique", "eval_lm_loss"} <= rows[-1].keys()


def test_before_an_iteration_ratios_are_1_and_at_first_the_policy_is_its_reference(ppo):
    assert max(column(ppo, "ratio_error")) < 1e-4
    assert column(ppo, "kl")[0] == pytest.approx(0, abs=1e-5)
    assert column(ppo, "kl")[-1] > 1e-3


def same(one, two) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def test_value_steps_leave_policy_and_its_optimizer_bit_identical(iterated):
    _, (begun, first, second, *_), _ = iterated
    assert same(first.params, begun.params)
    assert same(first.opt_state["policy"], begun.opt_state["policy"])
    assert not same(first.opt_state["value"].params, begun.opt_state["value"].params)
    assert not same(second.params, begun.params)


def test_nothing_changes_what_is_frozen_and_the_reference_is_where_the_policy_began(iterated):
    _, states, _ = iterated
    assert same(states[0].frozen, states[4].frozen)
    assert same(states[4].frozen["reference"], states[0].params)
    assert not same(states[4].params, states[0].params)


def test_the_value_model_begins_as_the_calibrated_reward_model(iterated):
    _, (begun, *_), _ = iterated
    value, judge = begun.opt_state["value"].params, begun.frozen["reward"]
    assert same(value["backbone"], judge["backbone"])
    np.testing.assert_array_equal(value["reward"], judge["reward"] * judge["gain"])


def test_nothing_is_compiled_after_the_first_iteration_that_learns_all(iterated):
    task, _, counts = iterated
    assert counts[0] > 0
    assert counts[2:] == [0, 0]
    assert [getattr(task.programs, name)._cache_size() for name in ("roll", "measure", "learn", "policy_step")] == [1] * 4


def test_the_coefficient_of_the_penalty_is_kept_and_adapts(iterated, ppo):
    _, states, _ = iterated
    kl, used = column(ppo, "kl"), column(ppo, "kl_coef")
    for state, before, nats in zip(states[1:], used, kl):
        want = before * (1 + np.clip(nats / 1.0 - 1, -0.2, 0.2) * 16 / 10_000)
        assert state.opt_state["kl_coef"] == pytest.approx(want, rel=1e-6)


def test_the_running_mean_is_of_all_responses_that_ended(iterated, ppo):
    _, states, _ = iterated
    assert states[4].opt_state["scores"].count == round(16 * sum(column(ppo, "ended")))


def test_iterations_of_a_task_are_those_of_a_run(iterated, ppo, chats, sft, rm):
    """What `fit` saved, read back."""
    import qwenjax

    read = qwenjax.load(ppo)
    assert same(read.params, iterated[1][4].params)


def test_a_killed_run_replays_and_ends_bit_identical(ppo, chats, sft, rm, tmp_path):
    """Killed behind iteration 2: values, both optimizers, running mean, coefficient, rows of text and all metrics."""
    shutil.copytree(ppo, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    assert run(ppo_of(chats, sft, rm), chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 4) == saved(ppo, 4)
    assert numbers(tmp_path / "run") == numbers(ppo)
    kept = saved(ppo, 4)["hashes"]
    for part in ("['policy']", "['value']", "['scores']", "['kl_coef']"):
        assert any(part in name for name in kept)


def test_another_model_than_the_run_began_with_is_refused(iterated):
    task = iterated[0]
    for name in ("reference", "reward"):
        with pytest.raises(ValueError, match=rf"the {name} model is not the one that this run began with.*--workdir"):
            task.frozen(lambda text: None, {"frozen": task.fingerprints | {name: "0" * 16}})


def test_a_batch_that_is_not_finite_does_not_count_as_a_step(iterated, chats):
    """Weights of NaN in the text: no update is made, and the run's count of steps stays that of its state."""
    task, states, _ = iterated
    with kept_programs(chats):
        state = task.begin(lambda text: None)._replace(step=jnp.int32(2))
        stream = task.batches(0)
        batch = next(stream)[1]
        stream.close()
        batch["ptx"] = [{**text, "weights": text["weights"] * np.nan} for text in batch["ptx"]]
        after, found = task.program.step(state, batch, UNLIMITED)
    assert not found["applied"]
    assert after.step == 2
    assert same(jax.device_get(after.params), states[0].params)


# ---- a reward function ----


@pytest.fixture(scope="session")
def grpo(chats, sft, letters):
    assert run(rl_stage(chats, "grpo", sft, letters, steps=3), chats, chats / "grpo").finished
    return chats / "grpo"


def test_a_function_that_raises_ends_the_run_and_the_mended_one_ends_it_bit_identical(chats, sft, letters, grpo, tmp_path):
    file = tmp_path / "letters.py"
    file.write_text(LETTERS + "calls = []\n")
    spec, broken = f"{file}:letters", LETTERS.replace("    assert all(turns", "    open(COUNT, 'a').write('.')\n    if len(open(COUNT).read()) == 3: raise KeyError('no such judge')\n    assert all(turns", 1)
    file.write_text(f"COUNT = {str(tmp_path / 'count')!r}\n" + broken)
    experiment = rl_stage(chats, "grpo", sft, spec, steps=3)
    with pytest.raises(Failed, match="letters.py:letters raises KeyError: 'no such judge'"):
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
    with pytest.raises(Failed, match="gives nan, not a finite number, for the response"):
        run(experiment, chats, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()
    file.write_text(LETTERS)
    assert run(experiment, chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 3)["hashes"] == saved(grpo, 3)["hashes"]


ROWS = [{"prompt": [{"role": "user", "content": "a"}], "answer": None}] * 2


def told(function, seconds=60.0):
    return scores.call(function, "f.py:f", seconds, ROWS, ["b", "c"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, r, a: 1 / 0, "f.py:f raises ZeroDivisionError"),
        (lambda p, r, a: exit(), "f.py:f raises SystemExit"),
        (lambda p, r, a: [1.0], "gives 1 scores for 2 responses"),
        (lambda p, r, a: None, "f.py:f raises TypeError"),
        (lambda p, r, a: [1.0, np.nan], "gives nan, not a finite number, for the response 'c'"),
        (lambda p, r, a: [np.inf, 0], "gives inf, not a finite number"),
        (lambda p, r, a: [1e300, 0], "gives 1e.300, not a finite number"),
        (lambda p, r, a: ["1", 0], "gives '1', not a finite number"),
        (lambda p, r, a: [None, 0], "gives None, not a finite number"),
    ],
)
def test_what_a_function_may_not_do(function, message):
    with pytest.raises(Failed, match=message):
        told(function)


def test_a_function_that_hangs_is_given_up():
    import threading

    never = threading.Event()
    with pytest.raises(Failed, match=r"has not answered within rl.seconds=0.05; raise that if it works"):
        told(lambda p, r, a: never.wait(), seconds=0.05)
    never.set()


@pytest.mark.parametrize(
    "given", [[True, 2], (0.5, 1), np.array([1, 2]), np.float32([0.7, 1]), jnp.array([0.7, 1.0]), [jnp.float32(1), 2]]
)
def test_numbers_of_any_kind_are_scores(given):
    found = told(lambda p, r, a: given)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.asarray(given, np.float32))


def test_a_failure_is_exit_code_1_and_a_line(monkeypatch, capsys, tmp_path):
    def fails(*rest, **more):
        raise Failed("the reward function f.py:f raises KeyError: 'x'")

    monkeypatch.setattr("qwenjax.train.loop.fit", fails)
    monkeypatch.setattr("qwenjax.cli.keep_programs", lambda: None)
    assert command.main(["--exp=tiny_ppo", f"--workdir={tmp_path}"]) == 1
    assert capsys.readouterr().err.endswith("error: the reward function f.py:f raises KeyError: 'x'\n")


# ---- what cannot work is refused ----


def refused(chats, experiment, message):
    with pytest.raises(ValueError, match=message):
        task_of(experiment, chats).begin(lambda text: None)


def test_without_a_reward_or_a_start_it_says_how_to_name_one(chats, sft, rm):
    refused(chats, rl_stage(chats, "grpo", sft, ""), r"learns from scores and has none: --set rl.reward=PATH")
    refused(chats, rl_stage(chats, "ppo", "", rm), r"--set init_from=PATH")
    refused(chats, rl_stage(chats, "grpo", sft, chats / "absent"), "absent")
    refused(chats, rl_stage(chats, "grpo", chats / "absent", rm), "absent")
    refused(chats, rl_stage(chats, "grpo", sft, "absent.py:f"), "rl.reward=absent.py:f: absent.py cannot be loaded")
    refused(chats, rl_stage(chats, "grpo", sft, "math:f"), "there is no function f in math")


def test_a_language_model_is_no_judge_and_a_reward_model_no_policy(chats, sft, rm):
    refused(chats, rl_stage(chats, "grpo", sft, sft), r"is no reward model of ours; train one")
    refused(chats, rl_stage(chats, "grpo", rm, rm), r"is a reward model: it scores texts and writes none")


def test_prompts_without_room_for_an_answer_are_counted_and_refused_if_they_are_all(chats, sft, rm, letters):
    task = task_of(rl_stage(chats, "grpo", sft, letters, data=Data(tokenizer="init_from", length=40, batch=16)), chats)
    lengths = task.mixture.files[0].table["tokens"]
    assert lengths.max() <= 32
    assert sum(task.mixture.files[0].index["left_out"].values()) if False else len(lengths) < 115
    short = rl_stage(chats, "grpo", sft, letters, data=Data(tokenizer="init_from", length=16, batch=16))
    refused(chats, short, r"no prompt to train on(.|\n)*longer than 8 tokens")


def test_texts_longer_than_the_judge_knows_are_refused(chats, sft, rm):
    long = rl_stage(chats, "grpo", sft, rm, data=Data(tokenizer="init_from", length=300, batch=16))
    long = replace(long, model=replace(long.model, context=512)) if False else long
    refused(chats, long, "lower data.length")


def test_a_judge_of_another_vocabulary_is_refused(chats, sft, rm, monkeypatch, tmp_path):
    tiny_model.tokenizer().save(tmp_path)
    files = {f.name: base64.b64encode(f.read_bytes()).decode() for f in tmp_path.iterdir()}
    real = scores.open_source

    def other(path):
        found = real(path)
        return replace(found, meta={**found.meta, "tokenizer": files})

    monkeypatch.setattr(scores, "open_source", other)
    refused(chats, rl_stage(chats, "grpo", sft, rm), "rm was trained with another tokenizer than")


def test_files_and_text_that_are_missing_are_named(chats, sft, rm, letters):
    given = rl_stage(chats, "grpo", sft, letters)
    refused(chats, replace(given, chat=Chat()), "reads prompts and names no file of them")
    refused(chats, replace(given, chat=Chat((ChatFile("absent.jsonl"),))), "no file absent.jsonl; wanted prompts")
    refused(chats, rl_stage(chats, "grpo", sft, letters, ptx=0.1, ptx_rows=8), "data.sources, of which there are none")


def test_grpo_has_its_penalty_in_the_loss_where_no_coefficient_adapts(chats, sft, letters):
    refused(chats, rl_stage(chats, "grpo", sft, letters, kl_target=1.0), r"rl.kl_target.*grpo")
