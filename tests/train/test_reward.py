"""Reward models: what is scored, what a step makes of preferences, what is stored, and which model is which."""

import shutil
from dataclasses import replace

import align_doubles
import jax
import numpy as np
import pytest
from align_doubles import column, kept_programs, numbers, run, saved, says, stage, task_of, user, write_rows

import qwenjax
from qwenjax.api.checkpoint_path import detect
from qwenjax.api.parameters import read_reward_model
from qwenjax.api.reward_model import load_reward
from qwenjax.config import Chat, ChatFile, Lora, Preference
from qwenjax.train.stages.reward import CALIBRATION_LISTS
from qwenjax.train.step import UNLIMITED


def rm_of(chats, sft, **change):
    return stage(chats, "reward", "pairs.jsonl", sft, **({"save_every": 4} | change))


@pytest.fixture(scope="module")
def task(chats, sft, rm):
    """The task of `rm` on one device."""
    with kept_programs(chats):
        yield task_of(rm_of(chats, sft), chats)


def state_of(task):
    return task.first_state(lambda text: None)


def scored(task, state, batch) -> np.ndarray:
    with jax.set_mesh(task.mesh):
        return np.asarray(task.rewards(state.params, state.frozen, task.to_mesh(batch, task.program.batch)))


def test_a_run_leaves_what_it_promises(rm):
    assert column(rm, "loss")[0] == pytest.approx(np.log(2), abs=0.1)  # a fresh head knows nothing
    report = (rm / "report.md").read_text()
    assert "| held-out pairs | number | in the right order | 95 % interval |" in report
    assert "| gap " in report  # pairs have scores of four kinds
    assert column(rm, "loss")[-1] < 0.8 * np.log(2)  # of nine held-out pairs nothing can be said after eight steps
    evaluated = [row["step"] for row in numbers(rm) if "eval_accuracy" in row]
    assert evaluated == [0, 4, 8]  # also before the first step: what it starts from


def test_a_step_raises_the_better_response_and_swapped_ratings_the_other(task):
    """The same batch, and the only difference is which response was rated higher."""
    batch = task.read(np.arange(8))
    gaps = []
    for ratings in (batch["ratings"], batch["ratings"][:, ::-1]):
        state = state_of(task)
        before = scored(task, state, batch)
        given = task.to_mesh(batch | {"ratings": np.ascontiguousarray(ratings)}, task.program.batch)
        state, _ = task.program.step(state, given, UNLIMITED)
        moved = scored(task, state, batch) - before
        gaps.append((moved[:, 0] - moved[:, 1]).mean())
    assert gaps[0] > 1e-3
    assert gaps[1] < -1e-3


def test_a_score_is_read_at_the_end_token_whatever_lies_behind(task, rm):
    batch = task.read(np.arange(8))
    end = np.take_along_axis(batch["tokens"], batch["end"][..., None], axis=2)[..., 0]
    assert (end == task.tokenizer.im_end).all()
    behind = batch["positions"] < 0
    assert behind.any()
    other = batch | {"tokens": np.where(behind, 7, batch["tokens"]).astype(np.int32)}
    state = state_of(task)
    np.testing.assert_allclose(scored(task, state, batch), scored(task, state, other), atol=1e-6)


def test_the_stored_model_scores_as_the_task_does_and_calibration_gives_mean_0_and_deviation_1(task, rm):
    """Through `load_reward`: the responses that were calibrated on, of the training files."""
    model, seen, ids = load_reward(rm), [], []
    state = state_of(task)
    params, head = read_reward_model(detect(rm), task.program.shardings.params["backbone"])[:2]
    state = state._replace(params={"backbone": params, "reward": head})
    for first in range(0, CALIBRATION_LISTS, 8):
        batch = task.read(np.arange(first, first + 8))
        seen.append(scored(task, state, batch)[batch["real"]])
        rows = zip(batch["tokens"][batch["real"]], batch["end"][batch["real"]])
        ids += [tokens[: end + 1].tolist() for tokens, end in rows]
    found = model.score_ids(ids)
    np.testing.assert_allclose(found, model.saved.gain * np.concatenate(seen) + model.saved.bias, atol=1e-4)
    assert found.mean() == pytest.approx(0, abs=1e-3)
    assert found.std(ddof=1) == pytest.approx(1, abs=1e-3)


def test_a_resumed_run_ends_bit_identical_with_its_calibration(rm, chats, sft, tmp_path):
    shutil.copytree(rm, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert run(rm_of(chats, sft), chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 8) == saved(rm, 8)
    assert "calibration" in saved(rm, 8)
    assert numbers(tmp_path / "run") == numbers(rm)


def test_a_reward_model_goes_on_from_a_preference_model_with_its_head(chats, rm, task):
    """PMP, then RM: backbone and head as they were stored."""
    again = task_of(rm_of(chats, rm), chats)
    state = jax.device_get(state_of(again))
    params, head = jax.device_get(read_reward_model(detect(rm))[:2])
    np.testing.assert_array_equal(state.params["reward"], head)
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], params)
    fresh = jax.device_get(state_of(task)).params["reward"]
    assert np.abs(fresh).max() < 0.5  # ~ 1 / (d + 1)
    assert not np.array_equal(fresh, head)


def test_lists_of_three_are_three_pairs_and_count_once(chats, sft):
    with kept_programs(chats):
        task = task_of(stage(chats, "reward", "lists.jsonl", sft, preference=Preference(responses=3)), chats)
        state = state_of(task)
        task.evaluate(state)
        lists = sum(int(batch["real"].all(axis=1).sum()) for batch in task.lists)
        assert len(task.pairs) == 3 * lists > 0
        state, found = task.program.step(state, next(task.batches(0))[1], UNLIMITED)
    assert found["tokens"] == 8  # a list weighs 1
    assert found["loss"] == pytest.approx(np.log(2), abs=0.1)


def test_each_kind_of_model_is_refused_where_the_other_is_wanted(chats, sft, rm):
    with pytest.raises(ValueError, match=r"is no reward model of ours; train one: .*--set init_from="):
        load_reward(sft)
    with pytest.raises(ValueError, match=r"is a reward model: it scores texts and writes none"):
        qwenjax.load(rm)
    with pytest.raises(ValueError, match=r"is a reward model: it scores texts and writes none"):
        state_of(task_of(stage(chats, "sft", "chat.jsonl", rm), chats))
    with pytest.raises(ValueError, match="absent"):
        load_reward(chats / "absent")


def test_pairs_without_a_preference_are_counted_and_refused_when_nothing_is_left(chats, sft, tmp_path):
    bad = [
        {"prompt": [user("a")], "responses": [says("same"), says("same ")]},
        {"prompt": [user("b")], "responses": [says("x"), says("")]},
    ]
    good = [{"prompt": [user(f"{n}")], "responses": [says("x"), says("y")]} for n in range(60)]
    mixed = write_rows(tmp_path / "mixed.jsonl", *bad, *good)
    given = rm_of(chats, sft, chat=Chat((ChatFile(str(mixed)),), validation=0.1))
    said = task_of(given, chats).mixture.files[0].lines()
    assert any("left out 1 x equal responses" in line for line in said)
    assert any("left out 1 x empty assistant turn" in line for line in said)
    none = Chat((ChatFile(str(write_rows(tmp_path / "bad.jsonl", *bad))),))
    with pytest.raises(ValueError, match=r"no preference to train on(.|\n)*equal responses"):
        task_of(rm_of(chats, sft, chat=none), chats)


@pytest.mark.slow
def test_a_margin_is_asked_for_per_unit_of_rating(chats, sft, task):
    """At first both responses score alike: the loss is log(1 + e^m), m the margin times the ratings' difference."""
    with kept_programs(chats):
        wide = task_of(rm_of(chats, sft, preference=Preference(margin=1.0)), chats)
        batch = wide.read(np.arange(8))
        state = state_of(wide)
        gap = scored(wide, state, batch) @ [1, -1]
        _, found = wide.program.step(state, wide.to_mesh(batch, wide.program.batch), UNLIMITED)
    want = np.logaddexp(0, batch["ratings"] @ [1, -1] - gap).mean()
    assert found["loss"] == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
def test_random_labels_stay_at_chance_and_real_ones_do_not(chats, sft, tmp_path):
    """Half of the lists are held out; ratings of the others are drawn by a coin."""
    rng, rows = np.random.default_rng(0), []
    for line, word in align_doubles.lines().items():
        both = [says(word), says("for" if word != "for" else "if")]
        rows.append({"prompt": [align_doubles.SYSTEM, user(line)], "responses": both[:: rng.choice([1, -1])]})
    path, found = write_rows(tmp_path / "random.jsonl", *rows), []
    for file in (path, chats / "pairs.jsonl"):
        chat = Chat((ChatFile(str(file)),), validation=0.4)
        given = rm_of(chats, sft, chat=chat, steps=60, save_every=60, eval_every=0)
        given = replace(given, data=replace(given.data, eval_tokens=10_000))  # all that is held out
        outcome = run(given, chats, tmp_path / file.stem)
        found.append(outcome.metrics["eval_accuracy"])
    assert found[0] < 0.7 < found[1]


def test_a_reward_model_has_no_head_to_train_whole(chats, sft):
    with pytest.raises(ValueError, match="names the head, and a reward model has none"):
        task_of(rm_of(chats, sft, lora=Lora(rank=2, base_dtype="float32", modules_to_save=("embed", "head"))), chats)


@pytest.mark.slow
def test_adapters_score_on_a_base_that_stays(chats, sft, tmp_path):
    """Stored are adapters and head only; `load_reward` merges them into the base they were trained on."""
    given = rm_of(chats, sft, lora=Lora(rank=2, base_dtype="float32", dropout=0.0))
    assert run(given, chats, tmp_path / "run").finished
    kept = [name for name in saved(tmp_path / "run", 8)["hashes"] if name.startswith("['params']")]
    assert all("lora" in name or "reward" in name for name in kept)
    with kept_programs(chats):
        task = task_of(replace(given, init_from=str(tmp_path / "run"), lora=Lora()), chats)  # merged, in full
        batch = task.read(np.arange(8))
        want = scored(task, state_of(task), batch)
    model = load_reward(tmp_path / "run")
    ids = [row[: end + 1].tolist() for row, end in zip(batch["tokens"][:, 0], batch["end"][:, 0])]
    np.testing.assert_allclose(model.score_ids(ids), model.saved.gain * want[:, 0] + model.saved.bias, atol=1e-3)
