"""Folders of hubs: every file that says something about a tokenizer counts. The reference is AutoTokenizer."""

import json
import shutil

import pytest

from qwenjax.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["Hello there", " two  blanks", "naïve café 天地", "\n\nx = 1\n  y", "cafe\u0301", "a\tb", "", "it's 123"]
CORPUS = ["def f(x):\n    return x + 1\n", "Hello there, how are you?", "naïve café 天地 <|im_start|> user"] * 40


def byte_level(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), plain=(), **flags):
    """A small byte-level BPE with control tokens."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.normalizer = tokenizers.normalizers.NFC()
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(CORPUS, trainer)
    engine.add_special_tokens([tokenizers.AddedToken(token, special=True, **flags) for token in special])
    engine.add_tokens([tokenizers.AddedToken(token, special=False, normalized=False) for token in plain])
    return engine


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A sentencepiece model as Llama 2 has one."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(CORPUS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def llama(folder, pieces, **config):
    shutil.copy(pieces, folder / "tokenizer.model")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **named, **config}))
    return folder


def same(folder):
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.size == len(theirs)
    for text in TEXTS:
        assert [*ours.prefix, *ours.encode_ordinary(text)] == theirs(text)["input_ids"], text
    for token in theirs.get_added_vocab():
        for text in (f"a {token} b", f"{token}a{token}\nb", f"{token}  x"):
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    return ours


@pytest.mark.parametrize(
    "config",
    [
        {"add_bos_token": True, "legacy": False},
        {"add_bos_token": True, "legacy": True},
        {"add_bos_token": False},
        {"add_prefix_space": False, "add_bos_token": True},
        {"added_tokens_decoder": {"320": {"content": "<|im_end|>", "special": True}}, "eos_token": "<|im_end|>"},
    ],
)
def test_a_sentencepiece_model_beside_its_config(tmp_path, pieces, config):
    for token in config.get("added_tokens_decoder", {}).values():
        token |= {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    same(llama(tmp_path, pieces, **config))


def test_added_tokens_in_a_file_of_their_own(tmp_path, pieces):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 320, "<|im_start|>": 321}))
    ours = load_tokenizer(llama(tmp_path, pieces))
    assert (ours.size, ours.im_end, ours.im_start) == (322, 320, 321)


def test_vocab_and_merges(tmp_path):
    facts = json.loads(byte_level().to_str())
    (tmp_path / "vocab.json").write_text(json.dumps(facts["model"]["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in facts["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {str(token.pop("id")): token for token in facts["added_tokens"]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    same(tmp_path)


@pytest.mark.parametrize("flags", [{}, {"rstrip": True}, {"lstrip": True}, {"rstrip": True, "lstrip": True}])
def test_blanks_that_a_token_takes_with_it(tmp_path, flags):
    byte_level(**flags).save(str(tmp_path / "tokenizer.json"))
    same(tmp_path)


def test_a_control_surface_is_control_whatever_its_flag_says(tmp_path):
    byte_level(special=["<|endoftext|>"], plain=["<|im_start|>", "<|im_end|>"]).save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.im_end == ours.special["<|im_end|>"]
    assert ours.im_end not in ours.encode_ordinary("a<|im_end|>b")


def test_one_id_for_a_token(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 3}))
    with pytest.raises(ValueError, match=r"has the id \d+ in one file and 3 in another"):
        load_tokenizer(tmp_path)


def test_a_saved_tokenizer_is_the_same(tmp_path, pieces):
    ours = load_tokenizer(llama(tmp_path, pieces, add_bos_token=True, chat_template="{{ messages[0].content }}"))
    ours.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.fingerprint == ours.fingerprint
    assert again.chat_fingerprint == ours.chat_fingerprint
    assert again.prefix == ours.prefix == (1,)
