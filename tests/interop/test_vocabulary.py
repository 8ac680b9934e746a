"""Written tokenizers give the ids of ours: on text of many languages, code, and characters at random."""

import json
import random
import sysconfig
from dataclasses import replace
from pathlib import Path

import models
import pytest

from qwenjax.chat_format import chatml
from qwenjax.config import ModelConfig
from qwenjax.interop.huggingface import tokenizer as vocabulary
from qwenjax.interop.huggingface.save import save_params
from qwenjax.interop.huggingface.tokenizer import CHAT_TEMPLATE, generation_config, write_tokenizer
from qwenjax.tokenizer import load_tokenizer, sentencepiece
from qwenjax.tokenizer.bpe import SPECIAL, ExtendedBPE, QwenBPE, byte_order, write_ranks
from qwenjax.tokenizer.vocabulary.merges import count_words, learn

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra tokenizers")

SENTENCES = (
    "The quick brown fox can't jump over 1,234 lazy dogs; isn't that odd?",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "나랏말싸미 듕귁에 달아 문자와로 서로 사맛디 아니할쎄",
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "ولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Ἐν ἀρχῇ ἦν ὁ λόγος. Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. ŻÓŁĆ ăîșț ñandú",
    "👩\u200d👧🏽 🇩🇪 ½ Ⅷ ﬁ ⑤ \u3000\xa0\u2003 x\u0301 e\u0301 \u1e9b\u0323 ∑∫√ → ▁ \x00\x7f",
)


STDLIB = Path(sysconfig.get_path("stdlib"))
CODE = [(STDLIB / f"{name}.py").read_text() for name in ("argparse", "tokenize", "os")]


def strings(count: int = 1000) -> list[str]:
    """Pieces of sentences and of Python's own sources, and random characters; always the same."""
    rng = random.Random(0)

    def cut(text):
        start = rng.randrange(len(text))
        return text[start : start + rng.randrange(1, 200)]

    def wild():
        ranges = ((32, 127), (0xA0, 0x500), (0x900, 0x1000), (0x3040, 0x9FFF), (0x1F300, 0x1FA00), (0x20, 0x10FFFF))
        chars = (rng.randrange(*rng.choice(ranges)) for _ in range(rng.randrange(1, 40)))
        return "".join(chr(c) for c in chars if not 0xD800 <= c < 0xE000)

    makers = (lambda: cut(rng.choice(SENTENCES)), lambda: cut(rng.choice(CODE)), wild)
    return [makers[i % 3]() for i in range(count - 1)] + ["".join(SENTENCES)]


def small(tokens: int = 400) -> QwenBPE:
    """A vocabulary of ranks learnt from the sentences."""
    ranks = byte_order()
    ranks += learn(count_words([*SENTENCES, *strings(300)]), ranks, most=tokens)
    return QwenBPE(write_ranks({token: i for i, token in enumerate(ranks)}))


def check(tokenizer, folder, rows):
    write_tokenizer(tokenizer, folder, "qwen2", ModelConfig(vocab=rows))
    engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = strings()
    assert len(texts) == 1000
    wrong = [text for text in texts if engine.encode(text, add_special_tokens=False).ids != tokenizer.encode(text)]
    assert not wrong
    for text in texts:
        ids = tokenizer.encode(text)
        assert engine.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    turn = "<|im_start|>user\nhi <|im_end|>\n<|endoftext|>"
    assert engine.encode(turn).ids == tokenizer.encode(turn)
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint  # our own file lies beside


def test_the_published_vocabulary(tmp_path, qwen_vocab):
    check(qwen_vocab, tmp_path, 151_936)
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert len(merges) == 151_643 - 256


def test_a_vocabulary_of_our_own(tmp_path):
    check(small(), tmp_path, 2048)


def test_a_vocabulary_with_extra_tokens(tmp_path):
    base = small()
    ranks = [base.decode_bytes([i]) for i in range(base.eot)]
    learned = learn(count_words(["一只猫 是一只猫 我是一只猫"] * 3), ranks, most=5)
    extra = {token: base.size + 3 * i for i, token in enumerate(learned)}  # with gaps
    check(ExtendedBPE(write_ranks({t: i for i, t in enumerate(ranks)}), write_ranks(extra)), tmp_path, 2048)


def test_a_sentencepiece_vocabulary(tmp_path):
    tokenizer = sentencepiece.train([*SENTENCES, *CODE], 1000, tmp_path / "trained.model")
    check(tokenizer, tmp_path, 1024)


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    unigram = sentencepiece.train([*SENTENCES, *CODE], 700, tmp_path / "trained.model", kind="unigram")
    with pytest.raises(ValueError, match="unigram vocabulary; only BPE"):
        write_tokenizer(unigram, tmp_path, "qwen2", ModelConfig(vocab=1024))
    with pytest.raises(ValueError, match=r"needs a qwen.tiktoken, which spm-700 is not; use --to=qwen2"):
        write_tokenizer(unigram, tmp_path, "qwen", ModelConfig(vocab=1024))
    base = small()
    with pytest.raises(ValueError, match=rf"{base.size} ids, the model's embedding only 96 rows"):
        write_tokenizer(base, tmp_path, "qwen2", models.PLAIN)
    monkeypatch.setattr(vocabulary, "PATTERN", r"\s+|\S+")  # as if the libraries cut text differently
    with pytest.raises(ValueError, match=r"cannot be written as tokenizer.json: .* would become"):
        write_tokenizer(base, tmp_path, "qwen2", ModelConfig(vocab=1024))
    assert not (tmp_path / "tokenizer.json").exists()


def test_files_of_the_first_layout(tmp_path):
    tokenizer = small()
    config = replace(models.PLAIN, vocab=1024)
    said = save_params(config, models.params(config), tmp_path / "out", "qwen", tokenizer=tokenizer)
    assert "tokenization_qwen.py" in said[0]
    assert load_tokenizer(tmp_path / "out").fingerprint == tokenizer.fingerprint
    values = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (values["chat_format"], values["eos_token_id"], values["top_p"]) == ("chatml", tokenizer.eot, 0.8)
    save_params(config, models.params(config), tmp_path / "out", "qwen2", tokenizer=tokenizer, generation={"top_k": 5})
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"top_k": 5}


def test_generation_configs_of_the_releases():
    tokenizer, config = small(), models.PLAIN
    base = generation_config(tokenizer, "qwen", config, chat=False)
    assert (base["chat_format"], base["stop_words_ids"]) == ("raw", [[tokenizer.eot]])
    assert "repetition_penalty" not in base
    chat = generation_config(tokenizer, "qwen2", config)
    assert (chat["eos_token_id"], chat["repetition_penalty"]) == ([tokenizer.im_end, tokenizer.eot], 1.1)


def test_the_chat_template_says_what_chatml_says():
    jinja2 = pytest.importorskip("jinja2", reason="comes with the extra parity")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE)
    turns = [{"role": "user", "content": "  Hello\n"}, {"role": "assistant", "content": "{{ Hi }}"}]
    for messages in (turns[:1], turns, [{"role": "system", "content": ""}, *turns]):
        for prompt in (True, False):
            got = template.render(messages=messages, add_generation_prompt=prompt)
            assert got == chatml.render(messages, prompt)


def test_control_tokens_are_all_there(tmp_path):
    tokenizer = small()
    write_tokenizer(tokenizer, tmp_path, "qwen2", ModelConfig(vocab=2048))
    engine = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [engine.token_to_id(surface) for surface in SPECIAL] == list(range(tokenizer.eot, tokenizer.size))
