"""`qwenjax.load` and what a `Model` does, on a tiny model with random weights; SmolLM2 where it is there."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

import qwenjax
from qwenjax import checkpoint, config
from qwenjax.api import jsonl_jobs, scoring
from qwenjax.api.checkpoint_path import compare, detect
from qwenjax.api.parameters import read_params
from qwenjax.common import command_line
from qwenjax.config import Compute, MeshShape
from qwenjax.generate import __main__ as generate
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.interop.huggingface.load import param_shardings
from qwenjax.model import transformer
from qwenjax.objectives.cross_entropy import next_token_loss
from qwenjax.sharding import make_mesh

TEXT = "class Action: def __init__(self, option_strings)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # chat settings of the releases would sample; tests are greedy where they say nothing
    return tiny_model.write(tmp_path_factory.mktemp("api") / "tiny", generation={"eos_token_id": 1})


@pytest.fixture(scope="module")
def model(folder):
    return qwenjax.load(folder)


def test_logits_are_those_of_the_parameters(model):
    ids = np.arange(24).reshape(2, 12)
    network = transformer.Transformer(tiny_model.CONFIG, Compute(dtype="float32", remat="none").resolved("cpu", 1))
    hidden, _ = network.apply({"params": tiny_model.params()}, jnp.asarray(ids))
    wanted = transformer.logits(tiny_model.params(), hidden)
    np.testing.assert_allclose(model.logits(ids), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="texts of equal length"):
        model.logits([1, 2])
    with pytest.raises(ValueError, match="id 512 is not in the vocabulary"):
        model.logits([[1, 512]])


def test_overrides_are_typed_and_misspelt_ones_are_told(folder):
    changed = detect(folder).override({"ntk": "true", "rope_scaling.kind": "linear", "rope_scaling.factor": 2}).config
    assert (changed.ntk, changed.rope_scaling.kind, changed.rope_scaling.factor) == (True, "linear", 2.0)
    with pytest.raises(ValueError, match="Did you mean 'logn'"):
        detect(folder).override({"logm": True})
    with pytest.raises(ValueError, match="not those of the config"):
        qwenjax.load(folder, layers=3)


def test_greedy_generation_is_the_argmax_of_logits(model):
    prompt = model.encode(TEXT)
    made = model.generate([prompt], Greedy(), 8)[0]
    scores = np.asarray(model.logits([[*prompt, *made]]))[0, len(prompt) - 1 :, : model.tokenizer.size]
    best = scores.argmax(axis=-1).tolist()
    assert made == best[: len(made)]
    assert len(made) == 8 or best[len(made)] == model.tokenizer.eot


def test_what_goes_in_is_what_comes_out(model):
    policy = Sample(top_p=0.9)
    texts = model.generate([TEXT, "import"], policy, 6, seeds=[5, 6])
    assert all(isinstance(text, str) for text in texts)
    assert model.generate("import", policy, 6, seeds=6) == texts[1]  # alone and in a batch
    ids = model.generate([model.encode(TEXT), model.encode("import")], policy, 6, seeds=5)
    assert [model.tokenizer.decode(row) for row in ids] == texts


def test_streamed_pieces_join_to_the_text_and_no_stop_appears(model):
    whole = model.generate(TEXT, Sample(), 24, seeds=3)
    cut = whole[8:11]
    pieces = []
    text = model.generate(TEXT, Sample(), 24, stop=cut, seeds=3, on_text=lambda row, piece: pieces.append(piece))
    assert text == whole[: whole.index(cut)]
    assert "".join(pieces) == text


def test_chat_encodes_users_plainly_and_ends_at_a_turn(model):
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    pieces = []
    text = model.chat(messages, max_new_tokens=12, on_text=pieces.append)
    assert "".join(pieces) == text
    assert "<|im_end|>" not in text
    assert model.encode_chat(messages).count(model.tokenizer.im_end) == 2


def test_scores_equal_the_training_loss(model):
    """The loss with weight on the continuation's targets, negated; whatever the lengths scored together."""
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(3, 480, a).tolist(), rng.integers(3, 480, b).tolist()) for a, b in ((5, 1), (40, 9))]
    got = model.score(*zip(*pairs))
    for (prompt, continuation), score in zip(pairs, got):
        ids = jnp.asarray([[*prompt, *continuation]])
        hidden, _ = model.network.apply({"params": model.params}, ids[:, :-1])
        weights = (jnp.arange(ids.shape[1] - 1) >= len(prompt) - 1).astype(jnp.float32)[None]
        loss = next_token_loss(hidden, transformer.head(model.params), ids[:, 1:], weights, 64)
        assert score == pytest.approx(-float(loss), abs=1e-4)
    assert model.score([pairs[1][0]], [pairs[1][1]])[0] == pytest.approx(got[1], abs=1e-5)


def test_scores_of_text_are_of_the_text_as_the_model_would_see_it(model):
    whole = model.tokenizer.encode_ordinary("def parse")
    split = len(model.tokenizer.encode_ordinary("def"))
    assert model.score(["def "], ["parse"]) == model.score(["def"], [" parse"])
    assert model.score(["def"], [" parse"]) == model.score([whole[:split]], [whole[split:]])
    assert model.score([""], ["x"]) == model.score([[model.tokenizer.eot]], [model.tokenizer.encode_ordinary("x")])
    assert model.score(["x"], [""]) == [0.0]
    with pytest.raises(ValueError, match="both text or both ids"):
        model.score(["x"], [[1]])


def test_a_token_that_crosses_the_border_belongs_to_the_continuation(model):
    """Cut where the prompt alone ends, the pair would lose it, and the continuation would cost nothing."""
    whole = model.tokenizer.encode_ordinary("the parser")
    crossing = [i for i in range(1, 10) if len(model.tokenizer.encode_ordinary("the parser"[:i])) >= len(whole)]
    text, start = "the parser", model.tokenizer.encode_ordinary("the parser"[: crossing[0]])
    same = next(i for i, (a, b) in enumerate(zip(start, whole)) if a != b)
    got = model.score([text[: crossing[0]]], [text[crossing[0] :]])
    assert got == model.score([whole[:same]], [whole[same:]])
    assert got[0] < -0.01


def test_scores_and_likelihoods_agree_at_the_border_of_dynamic_ntk(folder):
    """A text of one token more than the context has another base; both read it as the whole text does."""
    model = qwenjax.load(folder, ntk=True)
    model.tokenizer = None  # so that padding rows of the embedding count in both
    for length in (64, 65, 66):
        ids = np.random.default_rng(length).integers(3, 480, length).tolist()
        (likelihood,) = model.likelihoods([ids])
        assert model.score([ids[:-1]], [ids[-1:]])[0] == pytest.approx(float(likelihood.logprobs[-1]), abs=1e-3)


def test_scores_need_a_prompt_of_ids(model):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        scoring.score(model.network, model.params, [([1], [2]), ([], [3])])


def test_prompts_that_cannot_be_continued_are_refused(model):
    with pytest.raises(ValueError, match="empty: a model continues at least one token"):
        model.generate("")
    with pytest.raises(ValueError, match=r"prompt 1 has 64 tokens, and the model's window is 64.*ntk=True"):
        model.generate([[5], [5] * 64])
    assert len(model.generate([[5] * 60], Sample(min_new_tokens=99), max_new_tokens=99)[0]) <= 4
    with pytest.raises(ValueError, match="id 600 is not in the vocabulary"):
        model.generate([[600]])


def test_with_ntk_the_window_is_open(folder):
    extended = qwenjax.load(folder, ntk=True, logn=True)
    assert extended.window is None
    assert len(extended.generate([[5] * 70], Sample(min_new_tokens=4), 4)[0]) == 4


def test_a_mesh_changes_where_and_not_what(folder, model):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), tiny_model.CONFIG.embed)
    spread = qwenjax.load(folder, mesh)
    assert len(spread.params["embed"].sharding.device_set) == 8
    ids = np.arange(3, 35).reshape(4, 8)
    np.testing.assert_allclose(np.asarray(spread.logits(ids)), np.asarray(model.logits(ids)), atol=1e-4)
    assert spread.generate("import", max_new_tokens=4) == model.generate("import", max_new_tokens=4)


def test_what_is_saved_loads_with_the_same_bits(model, tmp_path):
    assert qwenjax.save(model, tmp_path / "again") == []
    again = qwenjax.load(tmp_path / "again")
    assert again.config == model.config
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), again.params, model.params)
    assert jax.tree.all(same)
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.generation_defaults.chat


def test_release_settings_decide_how_it_samples(tmp_path):
    folder = tiny_model.write(tmp_path / "released")  # top_p 0.8, repetition_penalty 1.1
    model = qwenjax.load(folder)
    assert model.sampling == Sample(top_k=0, top_p=0.8, repetition_penalty=1.1)
    assert model.generation_defaults.sampler(temperature=0) == Greedy(1.1)
    assert model.generation_defaults.eos_ids == {model.tokenizer.eot, model.tokenizer.im_end}


def test_a_tokenizer_with_more_ids_than_rows_is_refused(folder, tmp_path):
    small = replace(tiny_model.CONFIG, vocab=300)
    tiny_model.save_params(small, tiny_model.params(small), tmp_path / "small")
    tiny_model.tokenizer().save(tmp_path / "small")
    with pytest.raises(ValueError, match="480 ids, its embedding only 300 rows; they do not belong together"):
        qwenjax.load(tmp_path / "small")
    (tmp_path / "small" / "tokenizer.model").unlink()
    bare = qwenjax.load(tmp_path / "small")
    assert bare.generate([[5, 6]], max_new_tokens=2)[0]
    with pytest.raises(ValueError, match="no tokenizer found"):
        bare.generate("x")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ours with one checkpoint."""
    place = tmp_path_factory.mktemp("run")
    experiment = qwenjax.experiment("quickstart", {"data.seq_len": 64})
    experiment = replace(experiment, model=tiny_model.CONFIG)
    tiny_model.tokenizer().save(place / "tokenizer")
    checkpoints = checkpoint.Checkpoints(place / "checkpoints")
    meta = {"next_row": 0, "experiment": config.to_dict(experiment), "tokenizer_fingerprint": "x"}
    params = jax.tree.map(jnp.asarray, tiny_model.params())
    checkpoints.save(7, params, {"step": jnp.int32(7)}, meta, place / "tokenizer")
    checkpoints.close()
    return place


def test_a_run_loads_like_any_other(run, model):
    ours = qwenjax.load(run)
    assert ours.config == tiny_model.CONFIG
    np.testing.assert_array_equal(np.asarray(ours.logits([[4, 5, 6]])), np.asarray(model.logits([[4, 5, 6]])))
    assert ours.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert ours.encode("x")[0] == ours.tokenizer.eot  # as rows of training begin
    assert detect(run / "checkpoints" / "7").path == detect(run).path


def test_a_run_whose_description_is_broken_is_named_as_damaged(run, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    for file in (broken / "checkpoints" / "7" / "meta").iterdir():
        file.write_bytes(b"{")
    assert command_line.main_of("qwenjax.generate", generate, ["--model", str(broken), "hello"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: {broken}/checkpoints/7 is damaged: its description cannot be read (")


def test_training_starts_from_any_of_them(run, folder):
    mesh = make_mesh(MeshShape(), tiny_model.CONFIG.embed)
    places = param_shardings(tiny_model.CONFIG, mesh)
    for path in (run, folder):
        source, model = detect(path), replace(tiny_model.CONFIG, context=4096)
        params = read_params(replace(source, config=model), places)
        assert params["blocks"]["attn"]["q"].sharding == places["blocks"]["attn"]["q"]
        assert source.tokenizer().size == 480
        assert compare(source, model, path) == [f"context=64 in {path}, 4096 here"]
    with pytest.raises(ValueError, match=r"another model than .*: layers=2 instead of 3; use --set model=init_from"):
        compare(detect(folder), replace(tiny_model.CONFIG, layers=3), folder)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at"):
        qwenjax.load(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint in"):
        qwenjax.load(tmp_path)


# ---- jobs ----


def test_a_killed_job_goes_on_and_ends_the_same(model, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": f"import {word}", "id": i} for i, word in enumerate(("os", "sys", "re", "io", "abc"))]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = jsonl_jobs.CompletionJob(Sample(), 5, (), 0, 2)
    assert jsonl_jobs.run(model, jsonl_jobs.read_requests(source), 0, job, "d", out) > 0
    whole = out.read_bytes()
    assert [json.loads(line)["id"] for line in whole.splitlines()] == [0, 1, 2, 3, 4]
    out.write_bytes(whole[: whole.index(b"\n", whole.index(b"\n") + 1) + 9])  # two rows and a piece of the third
    done = jsonl_jobs.resume(out, rows, "d")
    assert done == 2
    jsonl_jobs.run(model, rows, done, job._replace(batch=8), "d", out)
    assert out.read_bytes() == whole
    with pytest.raises(ValueError, match="another model or options"):
        jsonl_jobs.resume(out, rows, "other")
    with pytest.raises(ValueError, match="line 1 answers another input"):
        jsonl_jobs.resume(out, rows[1:], "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("{", "line 1 is no JSON"),
        ('{"text": 1}', "line 1: wanted an object with"),
        ('{"prompt": "a"}\n{"messages": []}', "line 2: all rows must have the same one of"),
        ('{"messages": []}', r"line 1: messages=\[\]: wanted a list of"),
        ('{"messages": ["hi"]}', "line 1: messages=.*: wanted a list of"),
        ('{"prompt": "a", "seed": "3"}', "line 1: seed='3': wanted a whole number"),
        ('{"prompt": "a", "seed": -1}', "line 1: seed=-1: wanted a whole number"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, message):
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        jsonl_jobs.read_requests(tmp_path / "in.jsonl")


def test_a_row_that_cannot_be_answered_is_recorded_and_the_others_go_on(folder, tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(  # a byte order mark, half of an emoji, and a prompt longer than the window
        b'\xef\xbb\xbf{"prompt": "cut \\ud83d", "seed": null}\n'
        + json.dumps({"prompt": "word " * 400}).encode()
        + b'\n{"prompt": "after"}'
    )
    words = ["--model", str(folder), "--jsonl", str(source), "--out", str(out), "--max-new-tokens", "3"]
    assert command_line.main_of("qwenjax.generate", generate, words) == 1
    first, long, after = map(json.loads, out.read_text().splitlines())
    assert first["tokens"] == after["tokens"] == 3
    assert "completion" not in long
    assert "the prompt has" in long["error"]
    assert "1 of 3 rows could not be answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"suppress_tokens": 3}, {"bad_words_ids": [3]}, {"bad_words_ids": 3}, {"top_k": "x"}]
)
def test_a_generation_config_that_is_none_is_refused(tmp_path, capsys, wrong):
    folder = tiny_model.write(tmp_path / "model", generation=wrong)
    assert command_line.main_of("qwenjax.generate", generate, ["--model", str(folder), "hello"]) == 1
    assert "error: generation_config.json: " in capsys.readouterr().err


def test_a_file_that_is_no_utf8_says_so(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}', encoding="utf-16")
    with pytest.raises(ValueError, match="is no UTF-8"):
        jsonl_jobs.read_requests(tmp_path / "in.jsonl")


def test_prompts_of_the_chat_schema_are_conversations(tmp_path):
    turns = [{"role": "user", "content": "Hello"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": turns, "answer": "Hi"}) + "\n")
    assert jsonl_jobs.read_requests(tmp_path / "in.jsonl") == [{"answer": "Hi", "messages": turns}]


# ---- a real model ----


@pytest.mark.real_weights
def test_smollm2_knows_the_capital_of_france(smollm2):
    model = qwenjax.load(smollm2)
    assert "Paris" in model.chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=16)
    paris, london = model.score(["The capital of France is"] * 2, [" Paris", " London"])
    assert paris > london + 2
