"""Other people's vocabularies as tokenizers: ids of the library that made them, and no forged control tokens."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.chat_format import chatml
from qwenjax.interop.gguf.write import vocabulary
from qwenjax.tokenizer import gguf, load_tokenizer
from qwenjax.tokenizer.bpe import PATTERN
from qwenjax.tokenizer.hub import HubTokenizer

tokenizers = pytest.importorskip("tokenizers")
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(texts, special, words=(), first=None, size=500):
    """A byte-level BPE of the library tokenizers, cut as Qwen2 does."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split, tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    engine.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(texts, trainer)
    engine.add_special_tokens(special)
    engine.add_tokens([tokenizers.AddedToken(word, special=False, normalized=False) for word in words])
    if first:
        engine.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, engine.token_to_id(first))]
        )
    return engine


@pytest.fixture(scope="module")
def chatty(source_code):
    return byte_level(source_code, CHATML, words=["<think>"])


@pytest.fixture(scope="module")
def hub(chatty):
    return HubTokenizer(chatty.to_str().encode())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_ids_are_the_librarys_and_text_comes_back(chatty, hub, anything, data):
    text = data.draw(anything)
    ids = hub.encode_ordinary(text)
    assert not set(ids) & set(hub.special.values())
    assert hub.decode(ids) == text
    assert hub.encode_batch([text]) == [ids]
    assert hub.encode(text) == chatty.encode(text, add_special_tokens=False).ids
    stream = hub.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == text


def test_control_tokens_are_those_called_special(hub):
    assert hub.special.keys() == set(CHATML)
    assert hub.encode("a<|im_end|>")[-1] == hub.im_end
    thought = hub.encode_ordinary("<think>")  # added, but text
    assert len(thought) == 1
    assert hub.decode(thought) == "<think>"
    assert hub.decode(hub.encode_chat([{"role": "user", "content": "<|im_end|>"}])).count("<|im_end|>") == 3
    assert hub.encode_chat([{"role": "user", "content": "<|im_end|>"}]).count(hub.im_end) == 2


def test_a_vocabulary_whose_merges_spell_a_control_token_does_not_give_it():
    characters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*characters, "</", "s>", "</s>"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    engine.decoder = tokenizers.decoders.ByteLevel()
    engine.add_special_tokens(["</s>"])
    tokenizer = HubTokenizer(engine.to_str().encode())
    for text in ("</s>", "a</s></s>b", "</</s>s>"):
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.eot not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a</s>")[-1] == tokenizer.eot


def test_a_file_a_directory_and_a_pickle_are_the_same_tokenizer(hub, tmp_path):
    file = hub.save(tmp_path / "model")
    for again in (load_tokenizer(file), load_tokenizer(file.parent), pickle.loads(pickle.dumps(hub))):
        assert (again.fingerprint, again.size, again.special) == (hub.fingerprint, hub.size, hub.special)


def test_a_file_of_ours_is_preferred_to_the_tokenizer_json_beside_it(hub, small, tmp_path):
    hub.save(tmp_path)
    small.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == small.fingerprint


def test_a_model_without_chatml_has_a_beginning_and_no_chat(source_code):
    engine = byte_level(source_code, ["<|begin_of_text|>", "<|end_of_text|>"], first="<|begin_of_text|>", size=300)
    llama = HubTokenizer(engine.to_str().encode())
    assert llama.prefix == (llama.special["<|begin_of_text|>"],)
    assert llama.eot == llama.special["<|end_of_text|>"]
    assert (llama.im_start, llama.im_end) == (None, None)
    assert [*llama.prefix, *llama.encode_ordinary("ab")] == engine.encode("ab").ids
    with pytest.raises(ValueError, match="does not chat in ChatML"):
        llama.encode_chat([{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="does not chat in ChatML"):
        chatml.stop_sequences(llama)


def test_sentencepiece_in_a_tokenizer_json_stands_for_bytes():
    vocab = {"<unk>": 0, "</s>": 1} | {f"<0x{i:02X}>": 2 + i for i in range(256)} | {"▁": 258, "a": 259, "▁a": 260}
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    engine.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    engine.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    engine.add_special_tokens(["<unk>", "</s>"])
    tokenizer = HubTokenizer(engine.to_str().encode())
    assert tokenizer.decode(tokenizer.encode_ordinary("a a é\n")) == "a a é\n"
    assert tokenizer.decode_bytes([2 + 0xC3]) == b"\xc3"


def test_gguf_and_back(hub, tmp_path):
    """Metadata written for a larger embedding, read again: the same ids; the rows that fill it are none."""
    head = vocabulary(hub, hub.size + 5, "{{ template }}")
    assert len(head["tokenizer.ggml.tokens"]) == hub.size + 5
    assert head["tokenizer.ggml.pre"] == "qwen2"
    again = gguf.tokenizer_of(head, "x.gguf")
    assert (again.size, again.special, again.im_end) == (hub.size, hub.special, hub.im_end)
    for text in ("It's 1234 great!!  \n\n\tx", "天地 e\u0301 😀", "<|im_end|><think>"):
        assert again.encode(text) == hub.encode(text)
        assert again.encode_ordinary(text) == hub.encode_ordinary(text)


def test_gguf_of_our_own_vocabularies(small, qwen_vocab):
    from qwenjax.interop.gguf.write import vocabulary

    again = gguf.tokenizer_of(vocabulary(small, small.size + 3), "x.gguf")
    assert type(again) is type(small)
    text = "def f(x):\n    return '天 é <|im_end|>'"
    assert again.encode(text) == small.encode(text)


def test_what_cannot_be_read_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"not a tokenizer\.json of the library"):
        HubTokenizer(b"{}", "x/tokenizer.json")
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(ValueError, match="with the decoder WordPiece do not stand for bytes"):
        HubTokenizer(words.to_str().encode())
    none = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    none.decoder = tokenizers.decoders.ByteLevel()
    with pytest.raises(ValueError, match="none of its 0 control tokens ends a text"):
        HubTokenizer(none.to_str().encode())
