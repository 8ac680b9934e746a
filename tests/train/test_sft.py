"""Fine-tuning: masks reach the loss, packing does not show, adapters stay beside their base, runs resume."""

import json
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
import runs
import tiny_model
from align_doubles import STEADY, column, kept_programs, numbers, run, saved, says, stage, task_of, user, write_rows

import qwenjax
from qwenjax.api.checkpoint_path import detect
from qwenjax.api.parameters import read_adapter, read_params
from qwenjax.config import Chat, ChatFile, Data, Lora, to_dict


def sft_of(chats, base, **change):
    """As the fixture `sft` was made."""
    settings = {"steps": 40, "eval_every": 20, "save_every": 20, "dropout": 0.1}
    return stage(chats, "sft", "chat.jsonl", base, **(settings | change))


@pytest.fixture(scope="module")
def task(chats, base, sft):
    with kept_programs(chats):
        yield task_of(sft_of(chats, base), chats)


def nll(task, state, batch) -> tuple[float, float]:
    with jax.set_mesh(task.mesh):
        return tuple(map(float, task.nll(state.params, state.frozen, task.to_mesh(batch, task.program.batch), None)))


# ---- the loss ----


def test_the_loss_is_that_of_the_answers_alone(task, chats, sft):
    """By hand from the whole model's logits: the summed nll of what the assistant says and of its end."""
    state, batch = task.first_state(lambda text: None), task.read(np.arange(8))
    total, said = 0.0, []
    logits = np.asarray(qwenjax.load(chats / "base").logits(batch["inputs"]), np.float64)  # causal: padding is behind
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row in range(8):
        weights = batch["weights"][row] > 0
        real = batch["positions"][row] >= 0
        assert len(np.unique(batch["segments"][row][real])) == 1  # so the row is one text
        at = np.flatnonzero(weights)
        total -= logp[row, at, batch["targets"][row][at]].sum()
        said.append(task.tokenizer.decode(batch["targets"][row][at].tolist()))
    assert set(said) <= {f"{word}<|im_end|>" for word in ("if", "elif", "for", "def", "return", "raise")}
    found, weight = nll(task, state, batch)
    assert weight == batch["weights"].sum()
    assert found == pytest.approx(total, rel=1e-4)


def test_what_users_say_carries_no_loss_and_other_answers_another(task):
    state, batch = task.first_state(lambda text: None), task.read(np.arange(8))
    there = nll(task, state, batch)[0]
    masked = np.where(batch["weights"] > 0, batch["targets"], 7).astype(np.int32)
    assert nll(task, state, batch | {"targets": masked})[0] == there
    other = np.where(batch["weights"] > 0, 7, batch["targets"]).astype(np.int32)
    assert nll(task, state, batch | {"targets": other})[0] != there


def test_packed_dialogues_have_the_loss_of_unpacked_ones(chats, base):
    """Rows of 96 hold two or three dialogues, which see only themselves."""
    data = Data(tokenizer="init_from", seq_len=96, batch_size=8, eval_tokens=10_000)
    chat = Chat((ChatFile(str(chats / "chat.jsonl")),), validation=0.2)
    found = []
    with kept_programs(chats):
        for packed in (True, False):
            task = task_of(sft_of(chats, base, data=data, chat=replace(chat, packed=packed)), chats)
            rows = sum(int((batch["weights"].sum(axis=1) > 0).sum()) for batch in task.held_out.batches)
            found.append((*task.held_out_nats(task.first_state(lambda text: None)), rows))
    (one, weight, rows), (other, same, more) = found
    assert weight == same
    assert rows < more
    assert one == pytest.approx(other, rel=1e-5)


# ---- whole runs ----


def test_a_run_learns_what_it_was_not_shown_and_says_so(sft):
    losses = column(sft, "eval_loss")
    assert losses[-1] < 0.5 * losses[0]
    assert column(sft, "loss")[-1] < 0.3 * column(sft, "loss")[0]
    report = (sft / "report.md").read_text()
    assert f"| 40 | {losses[-1]:.4f} |" in report
    assert "<|im_start|>assistant" in report  # an answer to a held-out dialogue


def test_a_resumed_run_ends_bit_identical(sft, chats, base, tmp_path):
    """With dropout and packing; as after a kill behind the first save."""
    shutil.copytree(sft, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    assert run(sft_of(chats, base), chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 40) == saved(sft, 40)
    assert numbers(tmp_path / "run") == numbers(sft)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_bit_identical(chats, base, tmp_path):
    path = tmp_path / "sft.json"
    path.write_text(json.dumps(to_dict(sft_of(chats, base, save_every=5))))
    codes, said = runs.ended(runs.command(chats, tmp_path / "whole", path))
    assert codes == [0], said
    process = runs.command(chats, tmp_path / "run", path)
    runs.wait_for(lambda: (tmp_path / "run" / "checkpoints" / "15").is_dir(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    codes, said = runs.ended(runs.command(chats, tmp_path / "run", path))
    assert codes == [0], said
    assert saved(tmp_path / "run", 40) == saved(tmp_path / "whole", 40)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


# ---- adapters ----

ADAPTERS = Lora(rank=4, base_dtype="float32")


def lora_of(chats, sft, **change):
    return sft_of(chats, sft, **({"lora": ADAPTERS, "steps": 8, "save_every": 4, "eval_every": 0} | change))


@pytest.fixture(scope="module")
def lora(chats, sft):
    assert run(lora_of(chats, sft), chats, chats / "lora").finished
    return chats / "lora"


def test_a_checkpoint_of_adapters_holds_nothing_else_and_the_base_stays(lora, sft):
    kept = [name for name in saved(lora, 8)["hashes"] if name.startswith("['params']")]
    assert kept
    assert all("['lora']" in name for name in kept)
    base, read = qwenjax.load(sft).params, qwenjax.load(lora).params
    for name in ("embed", "head", "norm"):
        jax.tree.map(np.testing.assert_array_equal, base[name], read[name])
    assert not np.array_equal(base["blocks"]["attn"]["q"], read["blocks"]["attn"]["q"])


def test_a_loaded_run_computes_what_its_own_network_does(lora, chats, sft):
    """Base and adapters apart in training, merged when loaded: the same logits."""
    with kept_programs(chats):
        task = task_of(lora_of(chats, sft), chats)
        state = task.first_state(lambda text: None)
    trained = read_adapter(detect(lora), task.program.shardings.params).trained
    ids = np.random.default_rng(0).integers(0, 500, (2, 20), dtype=np.int32)
    network, variables = task.backbone.eval_network, task.backbone.variables(trained, state.frozen)
    want = jax.jit(lambda v: network.apply(v, ids)[0] @ v["params"]["head"])(variables)
    np.testing.assert_allclose(qwenjax.load(lora).logits(ids), want, atol=1e-4)
    assert np.abs(qwenjax.load(sft).logits(ids) - want).max() > 1e-2  # the adapters do something


@pytest.mark.slow
def test_adapters_resume_bit_identical_and_only_on_their_base(lora, chats, sft, base, tmp_path):
    shutil.copytree(lora, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert run(lora_of(chats, sft), chats, tmp_path / "run").finished
    assert saved(tmp_path / "run", 8) == saved(lora, 8)
    assert "base" in saved(lora, 8)["frozen"]
    with kept_programs(chats):
        task = task_of(lora_of(chats, base), chats)  # of the same shape, another model
        with pytest.raises(ValueError, match=r"the base model is not the one that this run began with.*--workdir"):
            task.load_frozen({"frozen": saved(lora, 8)["frozen"]})


def test_a_base_that_was_replaced_is_noticed_when_adapters_are_loaded(lora, chats, sft, base, monkeypatch):
    from qwenjax.api import checkpoint_path

    real = checkpoint_path.detect
    monkeypatch.setattr(
        checkpoint_path, "detect", lambda path, *rest: real(base if str(path) == str(sft) else path, *rest)
    )
    with pytest.raises(ValueError, match="not the model that the adapters in"):
        qwenjax.load(lora)


@pytest.mark.slow
@pytest.mark.parametrize("held", ["nf4", "int8", "bfloat16"])
def test_adapters_learn_on_a_base_of_few_bits(chats, sft, held, tmp_path):
    given = lora_of(chats, sft, lora=Lora(rank=4, base_dtype=held), steps=30, save_every=30)
    assert run(given, chats, tmp_path / "run").finished
    losses = column(tmp_path / "run", "loss")
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.02
    assert qwenjax.load(tmp_path / "run").params["embed"].shape == (512, 16)


def test_an_embedding_trained_beside_a_base_of_bfloat16_is_float32(chats, sft, tmp_path):
    """Updates of 0.00001, which bfloat16 would round away: they are in the checkpoint and in what is loaded."""
    held = Lora(rank=2, base_dtype="bfloat16", modules_to_save=("embed",))
    given = lora_of(chats, sft, lora=held, optim=replace(STEADY, peak_lr=1e-5), steps=2, save_every=2)
    assert run(given, chats, tmp_path / "run").finished
    began = read_params(detect(sft), dtype="bfloat16")["embed"].astype("float32")
    learned = read_adapter(detect(tmp_path / "run")).trained["params"]["embed"]
    assert learned.dtype == np.float32
    assert 0.9e-5 < np.abs(learned - began).max() < 4e-5
    np.testing.assert_array_equal(qwenjax.load(tmp_path / "run").params["embed"], learned)


# ---- what cannot work is refused ----


def test_another_vocabulary_than_the_models_is_refused(chats, base, tmp_path):
    tiny_model.tokenizer().save(tmp_path)
    other = sft_of(chats, base, data=Data(tokenizer=str(tmp_path), seq_len=48, batch_size=8))
    with pytest.raises(ValueError, match="was made with another tokenizer"):
        task_of(other, chats).first_state(lambda text: None)


def test_files_that_cannot_be_trained_on_say_why(chats, base, tmp_path):
    def refused(message, *rows):
        path = write_rows(tmp_path / "x.jsonl", *rows)
        with pytest.raises(ValueError, match=message):
            task_of(sft_of(chats, base, chat=Chat((ChatFile(str(path)),))), chats)

    refused(r"no conversation to train on(.|\n)*ends with a user turn", {"messages": [user("a")]})
    refused(r"no conversation to train on(.|\n)*empty assistant turn", {"messages": [user("a"), says(" ")]})
    refused(r"no conversation to train on(.|\n)*a prompt, not a conversation", {"prompt": [user("a")]})
    with pytest.raises(ValueError, match="reads conversations and names no file of them"):
        task_of(sft_of(chats, base, chat=Chat()), chats)
    with pytest.raises(ValueError, match=r"no file .*absent.jsonl; wanted conversations"):
        task_of(sft_of(chats, base, chat=Chat((ChatFile(str(tmp_path / "absent.jsonl")),))), chats)
    with pytest.raises(ValueError, match="starts from a model; name it: --set init_from=PATH"):
        task_of(sft_of(chats, "", data=Data(tokenizer="init_from", seq_len=48, batch_size=8)), chats)
    with pytest.raises(ValueError, match="absent"):
        task_of(sft_of(chats, tmp_path / "absent"), chats)
