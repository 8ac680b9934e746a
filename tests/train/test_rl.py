"""Reinforcement learning as whole runs and whole iterations: what is frozen, what is resumed, what goes wrong."""

import base64
import json
import shutil
import signal
from dataclasses import replace

import jax
import jax.monitoring
import numpy as np
import pytest
import runs
import tiny_model
from align_doubles import STEADY, column, kept_programs, numbers, rl_stage, run, saved, task_of, texts

from qwenjax.api.checkpoint_path import detect
from qwenjax.api.parameters import read_params
from qwenjax.config import Chat, ChatFile, Data, Lora, to_dict
from qwenjax.train.rl import models
from qwenjax.train.rl.evaluation import ResponseEvaluation, gather
from qwenjax.train.step import UNLIMITED


def ppo_of(chats, sft, rm, **change):
    data = Data(texts(chats), tokenizer="init_from", seq_len=48, batch_size=16, eval_tokens=600)
    settings = {"ptx_coef": 0.5, "ptx_batch": 8, "kl_target": 1.0, "data": data}
    settings["value_optim"] = replace(STEADY, peak_lr=1e-3)
    return rl_stage(chats, "ppo", sft, rm, **(settings | change))


@pytest.fixture(scope="session")
def ppo(chats, sft, rm):
    """The workdir of a finished run: the value model alone in the first of four iterations, then both, with text."""
    assert run(ppo_of(chats, sft, rm), chats, chats / "ppo").finished
    return chats / "ppo"


@pytest.fixture(scope="module")
def iterated(chats, sft, rm, ppo):
    """The task of that run, its states after 0, 1, … 4 iterations, and what was compiled before and in each."""
    events, counts = [], []

    def listen(name, *rest, **more):
        events.append(name)

    def count() -> None:
        counts.append(sum("jaxpr_to_mlir" in name for name in events))
        events.clear()

    with kept_programs(chats):
        task = task_of(ppo_of(chats, sft, rm), chats)
        state = task.first_state(lambda text: None)
        states, stream = [jax.device_get(state)], task.batches(0)
        jax.monitoring.register_event_duration_secs_listener(listen)
        step, _ = task.compile()
        count()
        for _ in range(4):
            state, _ = step(state, next(stream)[1], UNLIMITED)
            count()
            states.append(jax.device_get(state))
        stream.close()
        jax.monitoring.unregister_event_duration_listener(listen)
    return task, states, counts


# ---- one run ----


def test_a_run_leaves_what_it_promises(ppo):
    rows = numbers(ppo)
    assert [row["step"] for row in rows if "score" in row] == [1, 2, 3, 4]
    assert "| score |" in (ppo / "report.md").read_text()
    assert (ppo / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert {"eval_score", "eval_kl", "eval_length", "eval_ended", "eval_unique", "eval_lm_loss"} <= rows[-1].keys()


def table(workdir) -> list[str]:
    """The tables of a report, but for that of the clock."""
    text = (workdir / "report.md").read_text().split("| where the time went")[0]
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_report_knows_where_the_run_began(ppo):
    """`ppo` is evaluated only at its end, after the policy has moved."""
    began, entropy = (
        [line for line in table(ppo) if name in line] for name in ("KL to the reference", "entropy, nats")
    )
    assert began[0].split("|")[2].strip() == "0.000"
    assert float(entropy[0].split("|")[2]) == pytest.approx(column(ppo, "entropy")[0], rel=0.1)  # of other prompts


def test_text_is_read_from_the_iteration_on_in_which_the_policy_learns(iterated):
    task, rows = iterated[0], task_rows(iterated[0])
    assert "ptx" not in rows[0]
    again = task.batches(16)
    np.testing.assert_array_equal(next(again)[1]["ptx"][0]["inputs"], rows[1]["ptx"][0]["inputs"])
    again.close()
    np.testing.assert_array_equal(rows[1]["ptx"][0]["inputs"], task.text_read(np.arange(8))["inputs"])


def task_rows(task) -> list[dict]:
    """Its first two batches."""
    stream = task.batches(0)
    found = [next(stream)[1] for _ in range(2)]
    stream.close()
    return found


def test_a_sample_is_of_the_state_that_is_asked_for(iterated, monkeypatch):
    task, states, _ = iterated
    asked = []
    monkeypatch.setattr(task.evaluation, "run", lambda programs, state: asked.append(int(state.step)))
    monkeypatch.setattr(task.evaluation, "after", {"answers": ["a", "b"]})
    monkeypatch.setattr(task.evaluation, "step", 2)
    assert [answer for _, answer in task.samples(states[2])] == ["a", "b"]
    task.samples(states[3])
    assert asked == [3]


def test_prompts_with_tool_turns_are_shown_as_the_model_reads_them(iterated):
    task = iterated[0]
    examples = [{"prompt": [{"role": "user", "content": "2+2?"}, {"role": "tool", "content": "4"}], "answer": None}]
    ids = task.tokenizer.encode_ordinary("Observation: 4")
    prompts = {"prompts": np.array([[*ids, 0]], np.int32), "lengths": np.array([len(ids)])}
    assert ResponseEvaluation(task, prompts, examples).prompts == ["Observation: 4"]


def test_before_an_iteration_ratios_are_1_and_at_first_the_policy_is_its_reference(ppo):
    assert max(column(ppo, "ratio_error")) < 1e-4
    assert column(ppo, "kl")[0] == pytest.approx(0, abs=1e-5)
    assert column(ppo, "kl")[-1] > 1e-3


def same(one, two) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def test_the_value_warmup_leaves_policy_and_its_optimizer_bit_identical(iterated):
    _, (begun, first, second, *_), _ = iterated
    assert same(first.params, begun.params)
    assert same(first.opt_state["policy"], begun.opt_state["policy"])
    assert not same(first.opt_state["value"].params, begun.opt_state["value"].params)
    assert not same(second.params, begun.params)


def test_policy_and_value_model_learn_each_at_its_own_rate(iterated):
    """Four updates of Adam, whose first is the learning rate in every parameter: 0.01 here, 0.001 there."""
    _, (begun, first, second, *_), _ = iterated

    def furthest(before, after):
        return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)))

    assert 0.8e-2 < furthest(first.params, second.params) < 6e-2
    assert 0.8e-3 < furthest(begun.opt_state["value"].params, first.opt_state["value"].params) < 6e-3


def test_every_epoch_goes_through_all_responses_in_another_order(iterated, monkeypatch):
    task, (begun, *_), _ = iterated
    seen, logged = [], {"loss": np.float32(0), "grad_norm": np.float32(0), "applied": np.bool_(True)}

    def value_step(state, frozen, experience, index):
        seen.extend(index.tolist())
        return state, logged

    monkeypatch.setattr(task, "_compiled", task._compiled | {"value_step": value_step})
    task._update(begun, None, {}, 0)
    assert sorted(seen[:16]) == sorted(seen[16:]) == list(range(16))
    assert seen[:16] != seen[16:]


def test_nothing_changes_what_is_frozen_and_the_reference_is_where_the_policy_began(iterated):
    _, states, _ = iterated
    assert same(states[0].frozen, states[4].frozen)
    assert same(states[4].frozen["reference"], states[0].params)
    assert not same(states[4].params, states[0].params)


def test_the_value_model_begins_as_the_calibrated_reward_model(iterated):
    _, (begun, *_), _ = iterated
    value, rm = begun.opt_state["value"].params, begun.frozen["reward"]
    assert same(value["backbone"], rm["backbone"])
    np.testing.assert_allclose(value["head"], rm["head"] * rm["gain"], rtol=1e-6)
    assert value["bias"] == rm["bias"]


def test_programs_are_compiled_before_the_first_iteration_and_nothing_after_the_second(iterated):
    """The first of all learns the value model alone; small sums of numbers to log may be compiled in both."""
    before, _, _, *later = iterated[2]
    assert before == 5  # sample, forward_models, compute_advantages, policy_step, value_step
    assert later == [0, 0]


def test_the_coefficient_of_the_penalty_is_kept_and_adapts(iterated, ppo):
    _, states, _ = iterated
    kl, used = column(ppo, "kl"), column(ppo, "kl_coef")
    assert states[1].opt_state["kl_coef"] == np.float32(used[0])  # the policy did not learn, and could not move
    for state, before, nats in zip(states[2:], used[1:], kl[1:]):
        want = before * (1 + np.clip(nats / 1.0 - 1, -0.2, 0.2) * 16 / 10_000)
        assert state.opt_state["kl_coef"] == pytest.approx(want, rel=1e-6)


def test_the_running_mean_is_of_all_responses_that_ended(iterated, ppo):
    _, states, _ = iterated
    assert states[4].opt_state["scores"].count == round(16 * sum(column(ppo, "ended")))


def test_the_policy_of_a_run_is_read_back_as_a_language_model(iterated, ppo):
    assert same(read_params(detect(ppo)), iterated[1][4].params)


def test_a_killed_run_replays_and_ends_bit_identical(ppo, chats, sft, rm, tmp_path):
    """Killed behind iteration 2: values, both optimizers, running mean, coefficient, rows of text and all metrics."""
    shutil.copytree(ppo, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    assert run(ppo_of(chats, sft, rm), chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 4) == saved(ppo, 4)
    assert numbers(tmp_path / "run") == numbers(ppo)
    assert table(tmp_path / "run") == table(ppo)
    kept = saved(ppo, 4)["hashes"]
    for part in ("['policy']", "['value']", "['scores']", "['kl_coef']"):
        assert any(part in name for name in kept)


def test_another_model_than_the_run_began_with_is_refused(iterated):
    task = iterated[0]
    for name in ("reference", "reward"):
        with pytest.raises(ValueError, match=rf"the {name} model is not the one that this run began with.*--workdir"):
            task.load_frozen({"frozen": task.fingerprints | {name: "0" * 16}})


# ---- what cannot work is refused ----


def refused(chats, experiment, message):
    with pytest.raises(ValueError, match=message):
        task_of(experiment, chats).first_state(lambda text: None)


def test_without_a_reward_or_a_start_it_says_how_to_name_one(chats, sft, rm):
    refused(chats, rl_stage(chats, "grpo", sft, ""), r"learns from scores and has none: --set rl.reward=PATH")
    refused(chats, rl_stage(chats, "ppo", "", rm), r"--set init_from=PATH")
    refused(chats, rl_stage(chats, "grpo", sft, chats / "absent"), "absent")
    refused(chats, rl_stage(chats, "grpo", chats / "absent", rm), "absent")
    refused(chats, rl_stage(chats, "grpo", sft, "absent.py:f"), "rl.reward=absent.py:f: FileNotFoundError")
    refused(chats, rl_stage(chats, "grpo", sft, "math:f"), "rl.reward=math:f: there is no function f in math")


def test_a_language_model_is_no_reward_model_and_a_reward_model_no_policy(chats, sft, rm):
    refused(chats, rl_stage(chats, "grpo", sft, sft), r"is no reward model of ours; train one")
    refused(chats, rl_stage(chats, "grpo", rm, rm), r"is a reward model: it scores texts and writes none")


def test_prompts_without_room_for_an_answer_are_counted_and_refused_if_they_are_all(chats, sft, rm, letters):
    task = task_of(
        rl_stage(chats, "grpo", sft, letters, data=Data(tokenizer="init_from", seq_len=40, batch_size=16)), chats
    )
    lengths = task.mixture.files[0].table["tokens"]
    assert lengths.max() <= 32
    assert 0 < len(lengths) < 110
    assert "longer than 32 tokens" in "".join(task.mixture.files[0].lines())
    short = rl_stage(chats, "grpo", sft, letters, data=Data(tokenizer="init_from", seq_len=16, batch_size=16))
    refused(chats, short, r"no prompt to train on(.|\n)*longer than 8 tokens")


def test_texts_longer_than_those_of_the_reward_model_are_refused(chats, sft, rm):
    long = rl_stage(chats, "grpo", sft, rm, data=Data(tokenizer="init_from", seq_len=64, batch_size=16))
    refused(
        chats, long, r"data.seq_len=64, but rl.reward=.*trained on texts of at most 48 tokens.*--set data.seq_len=48"
    )


def test_a_reward_model_of_another_vocabulary_is_refused(chats, sft, rm, monkeypatch, tmp_path):
    tiny_model.tokenizer().save(tmp_path)
    files = {f.name: base64.b64encode(f.read_bytes()).decode() for f in tmp_path.iterdir()}
    real = models.detect

    def other(path):
        found = real(path)
        return replace(found, meta={**found.meta, "tokenizer": files})

    monkeypatch.setattr(models, "detect", other)
    refused(chats, rl_stage(chats, "grpo", sft, rm), "rm was made with another tokenizer")


def test_files_and_text_that_are_missing_are_named(chats, sft, rm, letters):
    given = rl_stage(chats, "grpo", sft, letters)
    refused(chats, replace(given, chat=Chat()), "reads prompts and names no file of them")
    refused(chats, replace(given, chat=Chat((ChatFile("absent.jsonl"),))), "no file absent.jsonl; wanted prompts")
    refused(
        chats, rl_stage(chats, "grpo", sft, letters, ptx_coef=0.1, ptx_batch=8), "data.sources, of which there are none"
    )


def test_grpo_has_its_penalty_in_the_loss_where_no_coefficient_adapts(chats, sft, letters):
    with pytest.raises(ValueError, match=r"rl.kl_target.*grpo"):
        rl_stage(chats, "grpo", sft, letters, kl_target=1.0)


# ---- slow: other devices, other processes, other models ----


@pytest.mark.slow
def test_eight_devices_make_the_iteration_of_one(chats, sft, rm):
    """fsdp and tensor axes: the same responses, and the same parameters to rounding, of policy and value model."""
    found = []
    for devices, mesh in ((1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2})):
        task = task_of(ppo_of(chats, sft, rm, value_warmup_steps=0), chats, devices, **mesh)
        step = task.compile()[0]
        state, stream = task.first_state(lambda text: None), task.batches(0)
        batch = next(stream)[1]
        with jax.set_mesh(task.program.mesh):
            rollout = task._compiled["sample"](
                state.params, state.frozen, batch["prompts"], batch["lengths"], task._seeds(0)
            )
            tokens = gather(rollout.tokens)
        after, _ = step(state, batch, UNLIMITED)
        stream.close()
        found.append((tokens, jax.device_get((after.params, after.opt_state["value"].params))))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0][1], found[1][1])


@pytest.fixture(scope="session")
def commanded(chats, sft, rm):
    """The config file of a command; chats/ppo-whole is the workdir of its uninterrupted run."""
    path = chats / "ppo.json"
    path.write_text(json.dumps(to_dict(ppo_of(chats, sft, rm, steps=8, keep=3))))
    codes, output = runs.ended(runs.command(chats, chats / "ppo-whole", path))
    assert codes == [0], output
    return path


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["within an iteration", "during a save"])
def test_a_run_killed_at_any_moment_ends_bit_identical(commanded, chats, tmp_path, moment):
    workdir, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    moments = {
        "within an iteration": lambda: (checkpoints / "2").is_dir(),
        "during a save": lambda: any("tmp" in path.name for path in checkpoints.glob("[3-9]*")),
    }
    process = runs.command(chats, workdir, commanded)
    runs.wait_for(moments[moment], process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    codes, output = runs.ended(runs.command(chats, workdir, commanded))
    assert codes == [0], output
    assert saved(workdir, 8) == saved(chats / "ppo-whole", 8)
    assert numbers(workdir) == numbers(chats / "ppo-whole")


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(commanded, chats, tmp_path):
    codes, output = runs.ended(*runs.two(chats, tmp_path / "run", commanded))
    assert codes == [0, 0], output
    one, two = chats / "ppo-whole", tmp_path / "run"
    for name in ("score", "kl", "loss", "value_loss"):
        assert len(column(two, name)) == 8
        # after a few updates a difference in the last bit may draw another token, and all that follows differs
        np.testing.assert_allclose(column(two, name)[:4], column(one, name)[:4], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_adapters_learn_on_a_base_that_stays(chats, sft, rm):
    """The reference is the base itself: nothing is held twice, and the checkpoint has adapters only."""
    experiment = rl_stage(chats, "ppo", sft, rm, steps=2, value_warmup_steps=0, lora=Lora(rank=2, base_dtype="float32"))
    assert run(experiment, chats, chats / "ppo-lora").finished
    kept = [name for name in saved(chats / "ppo-lora", 2)["hashes"] if name.startswith("['params']")]
    assert kept
    assert all("lora" in name for name in kept)
    assert column(chats / "ppo-lora", "kl")[0] == pytest.approx(0, abs=1e-5)
    assert max(column(chats / "ppo-lora", "ratio_error")) < 1e-4
    base, read = read_params(detect(sft)), read_params(detect(chats / "ppo-lora"))
    assert same(base["embed"], read["embed"])
    assert not same(base, read)


@pytest.mark.slow
def test_reinforce_runs_from_a_reward_model(chats, sft, rm):
    assert run(
        rl_stage(chats, "reinforce", sft, rm, steps=2, epochs=1, minibatches=1), chats, chats / "reinforce"
    ).finished
    assert max(column(chats / "reinforce", "ratio_error")) < 1e-4
