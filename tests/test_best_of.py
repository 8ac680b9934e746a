"""Best-of-n: which answer is taken, that it is one the policy gives, and what is refused."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st

import qwenjax
from qwenjax.api import best_of, jsonl_jobs, options
from qwenjax.api.best_of import BestOf, best, divergence
from qwenjax.api.model import Completion
from qwenjax.api.parameters import RewardParams
from qwenjax.api.reward_model import RewardModel
from qwenjax.common import command_line
from qwenjax.config import Compute
from qwenjax.generate import __main__ as command
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.model import reward_head

QUESTIONS = [[{"role": "user", "content": text}] for text in ("import what?", "def", "class Action:")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.write(
        tmp_path_factory.mktemp("best") / "tiny", generation={"eos_token_id": 1, "chat_format": "chatml"}
    )


@pytest.fixture(scope="module")
def model(folder):
    return qwenjax.load(folder)


@pytest.fixture(scope="module")
def judge():
    cfg = reward_head.headless(tiny_model.CONFIG)
    head = jnp.asarray(np.random.default_rng(1).standard_normal(cfg.embed), jnp.float32)
    compute = Compute(dtype="float32", remat="none").resolved("cpu", 1)
    params = tiny_model.params(cfg, seed=1)
    return RewardModel(cfg, RewardParams(params, head, 0.5, 1.0, "abcd"), tiny_model.tokenizer(), compute)


# ---- which one ----


def test_the_highest_score_among_those_that_ended():
    assert best([0.0, 2.0, 1.0], [True, True, True]) == 1
    assert best([0.0, 2.0, 1.0], [True, False, True]) == 2
    assert best([0.0, 2.0, 1.0], [False, False, False]) == 1
    assert best([1.0, 1.0], [True, True]) == 0
    for scores in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="wanted finite numbers"):
            best(scores, [True] * len(scores))


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1))
def test_no_other_answer_would_have_been_better(answers):
    scores, ended = zip(*answers)
    index = best(scores, ended)
    assert ended[index] or not any(ended)
    assert all(scores[i] <= scores[index] for i in range(len(scores)) if ended[i] == ended[index])


def test_divergence_is_that_of_the_maximum_of_n_draws():
    """By quantiles u of the score, the best of n has density n u^(n-1): the integral of that times its logarithm."""
    middles = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 8):
        density = n * middles ** (n - 1)
        assert divergence(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)


# ---- of a model's answers ----


def test_the_answer_is_the_policys_own_and_scored_as_a_rollout_ends(model, judge):
    chosen = BestOf(judge, 4).answers(model, QUESTIONS, Sample(), 12, (), [0, 1, 7])
    for messages, seed, one in zip(QUESTIONS, (0, 1, 7), chosen):
        prompt = model.encode_chat(messages)
        stops = [[model.tokenizer.im_end], [model.tokenizer.im_start]]
        alone = model.complete([prompt] * 4, Sample(), 12, stops, [4 * seed + i for i in range(4)])
        scores = judge.score_ids([[*prompt, *made.ids, model.tokenizer.im_end] for made in alone])
        np.testing.assert_allclose(one.scores, scores, atol=1e-5)
        assert one.completion.ids == alone[one.index].ids
        ended = [made.stop == (model.tokenizer.im_end,) for made in alone]
        assert one.index == best(scores.tolist(), ended)
        assert one.tokens == sum(len(made.ids) for made in alone)
        assert one.ended == sum(ended)
    assert len({one.completion.text for one in chosen}) == 3


def test_an_answer_ends_by_its_end_token_and_not_by_a_forged_turn(model, judge, monkeypatch):
    """As in PPO, where such a response gets `rl.missing_eos_score`."""
    end, start = model.tokenizer.im_end, model.tokenizer.im_start
    made = [Completion("a", [5], -1.0, "stop", stop) for stop in ((start,), (end,), ())]
    monkeypatch.setattr(type(model), "complete", lambda *_: made)
    monkeypatch.setattr(RewardModel, "score_ids", lambda *_: np.array([3.0, 1.0, 2.0]))
    (chosen,) = BestOf(judge, 3).answers(model, QUESTIONS[:1], Sample(), 12, (), [0])
    assert (chosen.index, chosen.ended) == (1, 1)


def test_a_completion_knows_what_stopped_it(model):
    prompt = model.encode_chat(QUESTIONS[0])
    free = model.complete([prompt], Sample(), 12, (), [0])[0]
    third, tail = free.ids[2], tuple(free.ids[3:5])
    first = free.ids.index(third)
    by_id, by_two, by_none = (model.complete([prompt], Sample(), 12, stops, [0])[0] for stops in ([third], [tail], []))
    assert (by_id.ids, by_id.stop) == (free.ids[:first], (third,))
    assert by_two.stop == tail
    assert (by_none.reason, by_none.stop) == ("length", ())


def test_what_cannot_be_chosen_among_is_refused(model, judge):
    with pytest.raises(ValueError, match=r"--best-of=4: greedy answers are all the same.*--temperature=1"):
        BestOf(judge, 4).check(model, Greedy())
    BestOf(judge, 1).check(model, Greedy())
    other = replace(judge, tokenizer=SimpleNamespace(name="spm-9", fingerprint="0" * 64))
    with pytest.raises(
        ValueError, match=r"the reward model was made with spm-9 \(fingerprint 000000000000\), not with spm-480"
    ):
        BestOf(other, 4).check(model, Sample())
    short = replace(judge, config=replace(judge.config, context=8))
    with pytest.raises(ValueError, match="the reward model's context is 8: give it shorter texts"):
        BestOf(short, 2).answers(model, QUESTIONS[:1], Sample(), 4, (), [0])


def test_texts_are_questions_to_a_chat_model_only(model):
    assert best_of.conversation(model, {"prompt": "Hi"}) == [{"role": "user", "content": "Hi"}]
    assert best_of.conversation(model, {"messages": QUESTIONS[0]}) == QUESTIONS[0]
    base = SimpleNamespace(generation_defaults=replace(model.generation_defaults, chat=False))
    assert best_of.conversation(base, {"messages": QUESTIONS[0]}) == QUESTIONS[0]
    with pytest.raises(ValueError, match="give a chat model"):
        best_of.conversation(base, {"prompt": "Hi"})


def test_a_file_has_all_scores_whatever_the_batch_and_goes_on(model, judge, tmp_path):
    rows = [{"messages": messages} for messages in QUESTIONS]
    whole, again = tmp_path / "whole.jsonl", tmp_path / "again.jsonl"
    chooser, job = (
        BestOf(judge, 3),
        jsonl_jobs.CompletionJob(Sample(), 6, (), 5, 2),
    )  # fewer at a time than answers to one prompt
    assert jsonl_jobs.run(model, rows, 0, job, "d", whole, best_of=chooser) > 0
    made = [json.loads(line) for line in whole.read_text().splitlines()]
    for row in made:
        assert len(row["scores"]) == 3
        assert row["score"] in row["scores"]
    again.write_bytes(whole.read_bytes()[:-20])
    assert jsonl_jobs.resume(again, rows, "d") == 2
    jsonl_jobs.run(model, rows, 2, job._replace(batch=9), "d", again, best_of=chooser)
    for one, other in zip(made, map(json.loads, again.read_text().splitlines())):
        assert one["completion"] == other["completion"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-3)


# ---- the command ----


def main(*argv: str) -> int:
    return command_line.main_of("qwenjax.generate", command, list(argv))


def test_the_command_shows_the_best_and_says_how_far_it_is_from_the_policy(
    folder, judge, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(options, "load_reward", lambda path, dtype: judge)
    asked = f"--model={folder}", "--reward=rm", "--best-of=4", "--temperature=1", "--max-new-tokens=6"
    assert main(*asked, "import what?") == 0
    shown = capsys.readouterr()
    found = BestOf(judge, 4).answers(qwenjax.load(folder), QUESTIONS[:1], Sample(), 6, (), [0])[0]
    assert shown.out == found.completion.text + "\n"
    assert f"answer {found.index + 1} of 4" in shown.err
    assert "up to 0.64 nats" in shown.err  # log 4 - 3/4
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "import what?"}\n')
    file = f"--jsonl={source}", f"--out={out}"
    assert main(*asked, *file) == 0
    row = json.loads(out.read_text())
    assert row["completion"] == found.completion.text
    assert row["scores"] == pytest.approx(found.scores, abs=1e-3)
    assert main(*asked, *file) == 0  # nothing is left to do
    capsys.readouterr()
    assert main(*asked, "--best-of=5", *file) == 1
    assert "made with another model or options" in capsys.readouterr().err


def test_who_chooses_and_among_how_many_go_together(capsys):
    for alone in ("--reward=rm", "--best-of=4"):
        assert main("--model=nowhere", alone, "Hi") == 2
        assert "go together" in capsys.readouterr().err


def test_a_language_model_cannot_judge(folder, capsys):
    assert main(f"--model={folder}", f"--reward={folder}", "--best-of=2", "--temperature=1", "Hi") == 1
    assert "is no reward model of ours" in capsys.readouterr().err
