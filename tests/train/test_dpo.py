"""DPO: it starts at log 2 with its reference, which stays, and is judged by the reward that it implies."""

import shutil

import jax
import numpy as np
import pytest
from align_doubles import column, kept_programs, numbers, run, saved, stage, task_of

from qwenjax.config import Lora, Preference
from qwenjax.model import transformer
from qwenjax.train.step import UNLIMITED

BETA = 0.5


def dpo_of(chats, sft, **change):
    settings = {"preference": Preference(beta=BETA), "save_every": 4}
    return stage(chats, "dpo", "pairs.jsonl", sft, **(settings | change))


@pytest.fixture(scope="module")
def stepped(chats, sft):
    """The task, its first batch, the state before, after one step and after four, on the host; numbers of the steps."""
    with kept_programs(chats):
        task = task_of(dpo_of(chats, sft), chats)
        state, found = task.first_state(lambda text: None), []
        states, stream = [jax.device_get(state)], task.batches(0)
        for _ in range(4):
            state, metrics = task.program.step(state, next(stream)[1], UNLIMITED)
            states.append(jax.device_get(state))
            found.append(jax.device_get(metrics))
        stream.close()
        yield task, task.read(np.arange(8)), states, found


def implied(task, state, batch) -> np.ndarray:
    with jax.set_mesh(task.mesh):
        placed = task.to_mesh(batch, task.program.batch)
        return np.asarray(task.rewards(state.params, state.frozen, placed))


def same(one, two) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def test_the_loss_begins_at_log_2_and_falls(stepped):
    losses = [found["loss"] for found in stepped[3]]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses[-1] < losses[0]


def test_the_reference_is_the_start_and_nothing_changes_it(stepped):
    _, _, states, _ = stepped
    assert same(states[0].frozen["reference"], states[0].params)
    assert same(states[4].frozen, states[0].frozen)
    assert not same(states[1].params, states[0].params)


def test_the_implied_reward_is_beta_times_the_log_ratio_of_the_whole_response(stepped):
    """By hand from both models' logits: tokens of the response and its end, summed, not averaged."""
    task, batch, states, _ = stepped
    found = implied(task, states[4], batch)
    network = transformer.Transformer(task.experiment.model, task.compute)
    tokens, mask = (batch[name].reshape(16, -1) for name in ("tokens", "mask"))
    forward = jax.jit(lambda params: transformer.logits(params, network.apply({"params": params}, tokens)[0]))
    logits = [np.asarray(forward(p), np.float64) for p in (states[4].params, states[4].frozen["reference"])]
    new, old = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
    assert (mask.sum(axis=1) >= 2).all()  # a word and its end
    for row in range(16):
        at = np.flatnonzero(mask[row])
        total = sum(new[row, t - 1, tokens[row, t]] - old[row, t - 1, tokens[row, t]] for t in at)
        assert found.reshape(-1)[row] == pytest.approx(BETA * total, abs=1e-4)
    assert not implied(task, states[0], batch).any()


def test_accuracy_is_by_the_implied_reward(stepped):
    task, _, states, _ = stepped
    numbers = task.evaluate(states[0])
    assert numbers["eval_accuracy"] == 0.5  # all ties
    assert numbers["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    found = task.evaluate(states[4])
    right = [p.margin > 0 for p in task.pairs]
    assert found["eval_accuracy"] == pytest.approx(np.mean(right))
    assert found["eval_loss"] == pytest.approx(np.mean(np.logaddexp(0, [-p.margin for p in task.pairs])), rel=1e-5)


def test_a_step_prefers_what_was_rated_higher_whichever_stands_first(stepped):
    task, batch, *_ = stepped
    gaps = []
    for ratings in (batch["ratings"], np.ascontiguousarray(batch["ratings"][:, ::-1])):
        state = task.first_state(lambda text: None)
        state, _ = task.program.step(state, task.to_mesh(batch | {"ratings": ratings}, task.program.batch), UNLIMITED)
        gaps.append((implied(task, state, batch) @ [1, -1]).mean())
    assert gaps[0] > 1e-3
    assert gaps[1] < -1e-3


def test_three_responses_and_trained_embeddings_are_refused(chats, sft):
    with pytest.raises(ValueError, match=r"dpo compares pairs; preference.responses=3: leave it at 2"):
        task_of(dpo_of(chats, sft, preference=Preference(responses=3)), chats)
    with pytest.raises(ValueError, match="the reference needs them as they were"):
        task_of(dpo_of(chats, sft, lora=Lora(rank=2, modules_to_save=("embed",))), chats)


def test_another_reference_than_the_run_began_with_is_refused(stepped):
    task = stepped[0]
    with pytest.raises(ValueError, match="the reference model is not the one that this run began with"):
        task.load_frozen({"frozen": {"reference": "0" * 16}})


@pytest.mark.slow
@pytest.mark.parametrize("lora", [Lora(), Lora(rank=2, base_dtype="float32", dropout=0.0)])
def test_a_resumed_run_ends_bit_identical(chats, sft, tmp_path, lora):
    given = dpo_of(chats, sft, lora=lora)
    assert run(given, chats, tmp_path / "whole").finished
    assert column(tmp_path / "whole", "loss")[0] == pytest.approx(np.log(2), abs=1e-5)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert run(given, chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 8) == saved(tmp_path / "whole", 8)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
