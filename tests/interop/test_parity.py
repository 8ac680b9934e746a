"""Against transformers: its logits from what we write, our logits from what it writes. Tolerance 1e-4 in float32."""

import json
from dataclasses import replace

import models
import numpy as np
import pytest

from qwenjax.chat_format import chatml
from qwenjax.config import RopeScaling
from qwenjax.interop.huggingface.config import read_config, write_config
from qwenjax.interop.huggingface.directory import open_directory
from qwenjax.interop.huggingface.load import load_params
from qwenjax.interop.huggingface.save import save_params

torch = pytest.importorskip("torch", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

SHAPES = {name: config for name, config in models.SHAPES.items() if name != "qwen"}
IDS = np.random.default_rng(3).integers(0, models.PLAIN.vocab, (2, 40)).astype(np.int32)
CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


def theirs(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(IDS).long()).logits.float().numpy()


@pytest.mark.parametrize("name", SHAPES)
def test_what_we_write_gives_the_same_logits_in_transformers(tmp_path, name):
    config = SHAPES[name]
    params = models.params(config)
    assert save_params(config, params, tmp_path / "out", file_bytes=60_000) == []
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="float32", output_loading_info=True
    )
    assert type(model).__name__ == CLASSES[name.split()[0]]
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    difference = np.abs(theirs(model) - models.logits(config, params, IDS)).max()
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_what_transformers_writes_gives_the_same_logits_here(tmp_path, name):
    """Its own random weights, its own files, in shards."""
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(**write_config(SHAPES[name], "qwen2")[0])
    model = getattr(transformers, CLASSES[name.split()[0]])(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are not left at one and zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    checkpoint = open_directory(tmp_path)
    assert checkpoint.config == SHAPES[name]
    np.testing.assert_allclose(
        models.logits(checkpoint.config, load_params(checkpoint), IDS), theirs(model), atol=1e-4, rtol=0
    )


def test_a_file_of_transformers_goes_through_us_unchanged(tmp_path):
    """Read, written and read by transformers: the same bits."""
    config = SHAPES["qwen3"]
    settings = transformers.AutoConfig.for_model(**write_config(config, "qwen2")[0])
    model = transformers.Qwen3ForCausalLM(settings)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = open_directory(tmp_path / "theirs")
    save_params(checkpoint.config, load_params(checkpoint), tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="float32")
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("scaling", [RopeScaling("linear", 4.0), RopeScaling("yarn", 4.0, 32, 16.0, 2.0)])
def test_transformers_understands_our_rotary_scaling_and_windows(tmp_path, scaling):
    config = replace(models.PLAIN, rope_scaling=scaling, windows=(0, 16, 16), rope_base=5e5)
    (tmp_path / "config.json").write_text(json.dumps(write_config(config, "qwen2")[0]))
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    rope = settings.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == (scaling.kind, 4.0, 5e5)
    if scaling.kind == "yarn":
        assert (rope["original_max_position_embeddings"], rope["beta_fast"], rope["beta_slow"]) == (32, 16.0, 2.0)
    assert settings.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert settings.sliding_window == 16
    settings.save_pretrained(tmp_path / "theirs")  # in the spelling of transformers 5
    assert read_config(json.loads((tmp_path / "theirs" / "config.json").read_text()))[0] == config


def test_the_written_tokenizer_and_template_in_transformers(tmp_path, qwen_vocab):
    config = replace(models.PLAIN, vocab=151_936, embed=8, heads=2, ffn=8, layers=1)
    save_params(config, models.params(config), tmp_path / "out", tokenizer=qwen_vocab)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (
        "It's 3.14 o'clock.\n\n\tif x:",
        "天地玄黄 ümlaut 👩\u200d👧 e\u0301",
        "<|im_start|>user\nhi<|im_end|>",
    ):
        assert tokenizer(text)["input_ids"] == qwen_vocab.encode(text)
        assert tokenizer.decode(qwen_vocab.encode(text)) == qwen_vocab.decode(qwen_vocab.encode(text))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (qwen_vocab.im_end, qwen_vocab.eot)
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    got = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert got == chatml.encode_chat(qwen_vocab, messages)
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert settings.eos_token_id == [qwen_vocab.im_end, qwen_vocab.eot]
