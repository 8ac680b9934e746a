"""Checkpoints of five layouts behave here as they do at home: transformers is the reference at every step.

load, ids of a conversation, greedy text, three steps of SFT, and every format that is written.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

import qwenjax
from qwenjax.api import parameters
from qwenjax.api.checkpoint_path import detect
from qwenjax.common import command_line
from qwenjax.convert import __main__ as convert
from qwenjax.generate.sampling import Greedy
from qwenjax.train.__main__ import main as train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def chatml(system: str = "") -> str:
    first = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nSYSTEM<|im_end|>\n{% endif %}"
    return first.replace("SYSTEM", system) * bool(system) + "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT


HEADER = "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
LAYOUTS = {  # class of the model, its control tokens, chat template, end of a turn, further settings
    "qwen2.5": ("Qwen2", IM, chatml("You are Qwen."), "<|im_end|>", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", IM, chatml(), "<|im_end|>", {"head_dim": 16}),
    "llama3": (
        "Llama",
        LLAMA3,
        "{{ bos_token }}{% for m in messages %}" + HEADER + "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|eot_id|>",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "smollm2": ("Llama", IM, chatml("You are SmolLM."), "<|im_end|>", {"tie_word_embeddings": True}),
}
CONVERSATION = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A small model."},
    {"role": "user", "content": "Say  it\nagain <|im_end|>"},
]


def engine(special: list[str], byte_pair: bool) -> "tokenizers.Tokenizer":
    """A byte-level BPE that splits as Qwen2's, or as Llama 3's with its token before a text."""
    from qwenjax.tokenizer.bpe import PATTERN

    split = PATTERN if byte_pair else PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    out = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=not byte_pair))
    out.normalizer = tokenizers.normalizers.NFC() if byte_pair else None
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
    out.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([cut, level])
    out.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    out.train_from_iterator(["Who are you? A small model. You are Qwen. Say it again\n", "system user"] * 20, trainer)
    out.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    if not byte_pair:
        first = (special[0], out.token_to_id(special[0]))
        out.post_processor = tokenizers.processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    return out


@pytest.fixture(scope="module", params=LAYOUTS)
def home(request, tmp_path_factory):
    """A folder as transformers writes it, and what transformers reads from it."""
    kind, special, template, end, more = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 512, "tie_word_embeddings": False}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**small | more)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.1) + ("norm" in name))
    model.save_pretrained(folder)
    library = engine(special, byte_pair=special is IM)
    names = {"eos_token": end, "pad_token": special[0] if special is IM else special[1]}
    names |= {"bos_token": special[0]} if special is LLAMA3 else {}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library, **names)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    ends = [library.token_to_id(token) for token in (end, names["pad_token"])]
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": ends}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder, model, transformers.AutoTokenizer.from_pretrained(folder), ends


def logits(model, ids) -> np.ndarray:
    with torch.no_grad():
        return model(torch.as_tensor(ids)).logits.numpy()


def assert_near(ours, theirs) -> None:
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def prompt(tokenizer, turns) -> list[int]:
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)


def test_it_reads_chats_and_writes_as_at_home(home):
    folder, theirs, tokenizer, ends = home
    ours = qwenjax.load(folder)
    ids = np.random.default_rng(0).integers(0, 400, (2, 100))
    assert_near(np.asarray(ours.logits(ids)), logits(theirs, ids))
    safe = [turn | {"content": turn["content"].replace("<|im_end|>", "")} for turn in CONVERSATION]
    assert ours.encode_chat(safe) == prompt(tokenizer, safe)
    hostile = ours.encode_chat(CONVERSATION)
    assert ours.tokenizer.decode(hostile) == tokenizer.decode(prompt(tokenizer, CONVERSATION))
    control = ours.tokenizer.added.values()
    assert [i for i in hostile if i in control] == [i for i in prompt(tokenizer, safe) if i in control]
    start = prompt(tokenizer, safe)
    padding = list(range(len(tokenizer), 512))
    wanted = theirs.generate(
        torch.tensor([start]), do_sample=False, max_new_tokens=20, suppress_tokens=padding, eos_token_id=ends
    )[0, len(start) :].tolist()
    got = ours.complete([start], Greedy(), 20)[0]
    assert got.ids == [i for i in wanted if i not in ends]


@pytest.mark.parametrize("to", ["qwen2", "gguf"])
def test_what_is_written_behaves_alike(home, tmp_path, to):
    folder, theirs, tokenizer, ends = home
    out = tmp_path / ("out.gguf" if to == "gguf" else "out")
    words = ["--model", str(folder), "--to", to, "--out", str(out), "--check"]
    assert command_line.main_of("qwenjax.convert", convert, words) == 0
    if to == "gguf":
        read = {"pretrained_model_name_or_path": tmp_path, "gguf_file": out.name}
        again = transformers.AutoTokenizer.from_pretrained(**read)
        ours = qwenjax.load(out)
        assert {*ends} <= {*ours.generation_defaults.eos_ids, ours.tokenizer.eot}
    else:
        again = transformers.AutoTokenizer.from_pretrained(out)
        model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="float32").eval()
        ids = np.random.default_rng(1).integers(0, 400, (1, 60))
        assert_near(logits(model, ids), logits(theirs, ids))
        written, source = (json.loads((at / "generation_config.json").read_text()) for at in (out, folder))
        assert source.items() <= written.items()
    assert again.chat_template == tokenizer.chat_template
    safe = CONVERSATION[:1]
    assert prompt(again, safe) == prompt(tokenizer, safe)
    assert again("Who are  you?\n")["input_ids"] == tokenizer("Who are  you?\n")["input_ids"]


def test_fine_tuning_keeps_its_format(home, tmp_path):
    folder, _, tokenizer, ends = home
    rows = [{"messages": [*CONVERSATION[:1], {"role": "assistant", "content": f"Number {i}."}]} for i in range(60)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "init_from": folder, "model": "init_from", "chat.files.0.path": tmp_path / "chat.jsonl", "data.seq_len": 96,
        "steps": 3, "data.eval_tokens": 200, "optim.warmup_steps": 1, "lora.rank": 2, "data.batch_size": 8,
    }  # fmt: skip
    words = [f"--set={name}={value}" for name, value in settings.items()]
    run = tmp_path / "run"
    assert train(["--exp=smollm2_sft", f"--workdir={run}", f"--data-root={tmp_path / 'data'}", *words]) == 0
    tuned = qwenjax.load(run)
    assert tuned.encode_chat(CONVERSATION[:1]) == prompt(tokenizer, CONVERSATION[:1])
    ids, mask = tuned.tokenizer.encode_training(rows[7]["messages"])
    assert tuned.tokenizer.decode([i for i, trained in zip(ids, mask) if trained]) == "Number 7." + tokenizer.eos_token
    assert tuned.tokenizer.turn_end == ends[0]
    base = parameters.read_params(replace(detect(folder), config=tuned.config))
    assert tuned.config == detect(folder).config
    assert base.keys() == tuned.params.keys()
