"""The quick engine gives the ids of the engine of record, on every kind of text we could think of.

By default a seeded sample; `pytest -m slow tests/tokenizer/test_exactness.py` compares over a
million strings (minutes).
"""

import collections
import gzip
import inspect
import itertools
import json
import pickle
import random
import sys
import types
import unicodedata
import warnings
from collections.abc import Callable, Iterator

import pytest

from qwenjax.tokenizer.bpe import _ALIKE, QUICKTOK, QwenBPE, write_ranks

quicktok = pytest.importorskip("quicktok", reason="needs the extra 'fast'")

CODE_POINTS = [chr(c) for c in range(sys.maxunicode + 1)]
BY_CATEGORY = collections.defaultdict(list)
for character in CODE_POINTS:
    BY_CATEGORY[unicodedata.category(character)].append(character)
MARKS = [c for kind in ("Mn", "Mc", "Me") for c in BY_CATEGORY[kind] if _ALIKE.fullmatch(c)]
NUMBERS = [c for kind in ("Nd", "Nl", "No") for c in BY_CATEGORY[kind] if _ALIKE.fullmatch(c)]
BLANKS = [c for c in CODE_POINTS if c.isspace()]
SURFACES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<think>", "<|vision_pad|>", "</tool_call>"]
EMOJI = [*"👩👧🧬😀🏽🇨🇳⚕✈❤\u200d\ufe0f\ufe0e\u20e3\U000e0067\U000e007f", "👩\u200d⚕️", "🏳️\u200d🌈", "🇨🇳"]
SUFFIXES = ["s", "t", "re", "ve", "m", "ll", "d", "ſ", "K", "x", "st", "sſ", "", "\u0301"]
UNLIKE = [c for c in CODE_POINTS if not _ALIKE.fullmatch(c)]


def length(rng: random.Random, most: int) -> int:
    """From 1 to `most`, every order of magnitude as likely."""
    return int(most ** rng.random())


def kinds(texts: list[str], tokens: list[str]) -> dict[str, Callable[[random.Random], str]]:
    """Makers of strings, from real texts and the surfaces of a vocabulary."""
    words = [token for token in tokens if token.isalpha()]
    late = tokens[131_072:]  # ids of 2^17 and above take another way through quicktok
    categories = list(BY_CATEGORY)

    def real(rng):
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        return text[start : start + length(rng, 4000)]

    def edited(rng):
        text = list(real(rng)[:300])
        for _ in range(length(rng, 20)):
            new = rng.choice(["", " ", "\n", "\r\n", "'", "\t", "0", "é", "中", ".", rng.choice(CODE_POINTS)])
            at = rng.randrange(len(text) + 1)
            text[at : at + rng.randrange(3)] = [new]
        return rng.choice([str, str.upper, str.title, str.swapcase])("".join(text))

    def decomposed(rng):
        return unicodedata.normalize(rng.choice(["NFD", "NFKD"]), real(rng)[:300])

    def glued(rng):
        return "".join(rng.choices(rng.choice([tokens, words, late]), k=length(rng, 12)))

    def characters(rng):
        pools = [BY_CATEGORY[rng.choice(categories)] for _ in range(3)] + [CODE_POINTS[:128]]
        return "".join(rng.choice(rng.choice(pools)) for _ in range(length(rng, 60)))

    def blanks(rng):
        pool = rng.choices([" ", " ", "\n", "\r\n", "\r", "\t", *BLANKS], k=3)
        return "".join(rng.choice(pool) * length(rng, 30) + rng.choice(["", "x", "'s", "中", "!"]) for _ in range(4))

    def digits(rng):
        return "".join(rng.choice([rng.choice(NUMBERS), rng.choice(" ,.x")]) for _ in range(length(rng, 40)))

    def marked(rng):
        bases = ["e", "A", "ﬁ", "가", "ᄀ", "ᅡ", "ᆨ", "क", "ا", "<|im_end|>", " ", "\n", rng.choice(CODE_POINTS)]
        return "".join(rng.choice(bases) + "".join(rng.choices(MARKS, k=rng.randrange(4))) for _ in range(8))

    def emoji(rng):
        return "".join(rng.choices([*EMOJI, " ", "x", "\n"], k=length(rng, 20)))

    def contractions(rng):
        ends = (rng.choice([str.upper, str.lower, str.title])(s) for s in rng.choices(SUFFIXES, k=4))
        return "".join(rng.choice(["it", "", " ", "中", "1", "''"]) + rng.choice("'’") + end for end in ends)

    def runs(rng):
        one = rng.choice([rng.choice(CODE_POINTS), rng.choice("aA 0!\n'中é"), rng.choice(tokens)])
        return rng.choice(["", "x", " "]) + one * length(rng, 20_000 // len(one)) + rng.choice(["", "x", "\n", " x"])

    def surfaces(rng):
        return "".join(rng.choice([*SURFACES, *SURFACES, real(rng)[:20], ">", "\u0338"]) for _ in range(5))

    def unlike(rng):
        return "".join(rng.choice(["a", " ", "'s", "\n", "e\u0301", rng.choice(UNLIKE)]) for _ in range(8))

    def noise(rng):
        return rng.randbytes(length(rng, 200)).decode(rng.choice(["latin-1", "cp437", "utf-16-le"]), "replace")

    makers = (real, edited, decomposed, glued, characters, blanks, digits, marked, emoji, contractions, runs)
    return {maker.__name__: maker for maker in (*makers, surfaces, unlike, noise)}


def compare(tokenizer: QwenBPE, strings: Iterator[str]) -> tuple[int, int]:
    """Numbers of strings compared, and of those that the quick engine encoded."""
    total = quick = 0
    for text in strings:
        found = tokenizer.encode_array(text)
        assert found.tolist() == tokenizer.encode_ordinary(text), ascii(text)
        total += 1
        quick += bool(_ALIKE.fullmatch(unicodedata.normalize("NFC", text)))
    assert tokenizer.quicktok, "quicktok is installed and was not used"
    return total, quick


def vocabulary(tokenizer: QwenBPE) -> list[str]:
    """The tokens that are whole characters."""
    found = (tokenizer.decode([i]) for i in range(tokenizer.eot))
    return [text for text in found if "\ufffd" not in text]


def in_context(characters: list[str]) -> Iterator[str]:
    """Each character where its class shows: a letter, a number, a blank and a sign each cut these otherwise."""
    for c in characters:
        yield f"a{c}'s {c}{c}1{c}\n!{c}\n\n {c}e\u0301{c}\u0327\u0301"


def test_a_sample_of_every_kind(qwen_vocab):
    texts = [inspect.getsource(module) for module in (random, inspect, json, collections)]
    rng = random.Random(0)
    makers = kinds(texts, vocabulary(qwen_vocab)).values()
    total, quick = compare(qwen_vocab, (maker(rng) for _ in range(1400) for maker in makers))
    assert total == 1400 * len(makers)
    assert quick > 0.7 * total  # what is sent to tiktoken proves nothing


def test_every_token_by_itself(qwen_vocab):
    assert compare(qwen_vocab, iter(vocabulary(qwen_vocab)[::10]))[1] > 10_000


def test_characters_in_context(qwen_vocab):
    kept = [c for c in CODE_POINTS if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    compare(qwen_vocab, in_context(kept[::50] + UNLIKE[::50]))


def test_real_languages(qwen_vocab, shared):
    with gzip.open(shared / "udhr" / "udhr.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:2000] for line in lines]
    assert compare(qwen_vocab, iter(texts))[1] > 500


def test_the_characters_sent_to_tiktoken_need_it(qwen_vocab):
    """If quicktok agrees one day, `_ALIKE` can go."""
    for text in ("'ſtill 'ſ", "1\u088f's", "a\u0898\u0897"):
        assert not _ALIKE.fullmatch(text)
        assert qwen_vocab.encode_array(text).tolist() == qwen_vocab.encode_ordinary(text)
    assert quicktok.get_encoding("qwen3").encode_ordinary("x\u088f's") != qwen_vocab.encode_ordinary("x\u088f's")
    assert qwen_vocab.encode_array("a\ud800b \ud83d\ude00").tolist() == qwen_vocab.encode_ordinary(
        "a\ud800b \ud83d\ude00"
    )


def test_arrays_of_long_and_empty_texts(qwen_vocab):
    for text in ("", "x" + " " * 2_100_000 + "y\n" + "\t" * 1_200_000, "word\n" * 250_000):
        found = qwen_vocab.encode_array(text)
        assert found.dtype == "uint32"
        assert found.tolist() == qwen_vocab.encode_ordinary(text)


def test_only_the_tested_version_of_the_published_vocabulary_is_used(qwen_vocab, monkeypatch):
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256}
    toy = QwenBPE(write_ranks(ranks))
    assert toy.quicktok is None
    assert toy.encode_array("abc").tolist() == toy.encode_ordinary("abc") == [256, 99]

    def fresh(module) -> QwenBPE:
        monkeypatch.setitem(sys.modules, "quicktok", module)
        return pickle.loads(pickle.dumps(qwen_vocab))

    with pytest.warns(UserWarning, match=r"quicktok 9\.9 is not used; only 0\.4\.0 is tested"):
        assert fresh(types.SimpleNamespace(__version__="9.9")).quicktok is None
    wrong = types.SimpleNamespace(encode_ordinary=lambda text: [0])
    with pytest.warns(UserWarning, match="ids differ from those of tiktoken"):
        assert fresh(types.SimpleNamespace(__version__=QUICKTOK, get_encoding=lambda name: wrong)).quicktok is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fresh(None).quicktok is None  # as if it were not installed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_strings(qwen_vocab, shared):
    """Every document whole and in pieces, every code point and token, and a million made strings."""
    whole = []
    for file in sorted(shared.rglob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        whole += [
            row["text"] if isinstance(row.get("text"), str) else json.dumps(row, ensure_ascii=False) for row in rows
        ]
    rng = random.Random(1)

    def pieces():
        for text in whole:
            at = 0
            while at < len(text):
                n = length(rng, 20_000)
                yield text[at : at + n]
                at += n

    tokens = vocabulary(qwen_vocab)
    made = kinds(whole, tokens)
    parts = {
        "documents": iter(whole),
        "pieces of documents": pieces(),
        "tokens": iter(tokens),
        "code points in context": in_context(CODE_POINTS),
        **{name: map(maker, itertools.repeat(rng, 80_000)) for name, maker in made.items()},
    }
    counts = {name: compare(qwen_vocab, strings) for name, strings in parts.items()}
    for name, (total, quick) in counts.items():
        print(f"{name}: {total:,} strings equal, {quick:,} of them by quicktok")
    assert sum(quick for _, quick in counts.values()) > 1_000_000
