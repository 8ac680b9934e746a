"""`tokenizer compression`: counts, ratios and the report's order; texts by language from folders and files."""

import gzip
import json
import re
import unicodedata

import pytest

from qwenjax.sources.documents import Report
from qwenjax.tokenizer import load_tokenizer
from qwenjax.tokenizer.bpe import byte_order, write_ranks
from qwenjax.tokenizer.vocabulary import compression

THAI, FRENCH = "ภาษาไทย เป็นภาษา", "L'été e\u0301tait là"


@pytest.fixture
def byte_vocabulary(tmp_path):
    """As many tokens as bytes: a base by which ratios can be worked out by hand."""
    path = tmp_path / "bytes.tiktoken"
    path.write_bytes(write_ranks({token: i for i, token in enumerate(byte_order())}))
    return path


@pytest.fixture
def folder(tmp_path):
    """A text per language by its code, code, and something else."""
    texts = tmp_path / "texts"
    (texts / "code").mkdir(parents=True)
    (texts / "code" / "a.py").write_text("x = 1234\n")
    (texts / "fra.txt").write_text(FRENCH, encoding="utf-8")
    (texts / "th.jsonl").write_text(json.dumps({"text": THAI}) + "\n" + json.dumps({"text": THAI * 2}))
    (texts / "sw.txt").write_text("habari")
    return texts


def test_counts_are_the_tokenizers_own_and_ratios_are_of_the_base(byte_vocabulary, folder, qwen_vocab):
    compared = compression.compare([str(byte_vocabulary), "qwen"], folder, 1000)
    assert [row.code for row in compared.languages] == ["th", "fr", "code"]  # the report's order
    thai, french, code = compared.languages
    assert (thai.documents, thai.bytes) == (2, 3 * len(THAI.encode()))
    assert thai.tokens == (thai.bytes, len(qwen_vocab.encode(THAI)) + len(qwen_vocab.encode(THAI * 2)))
    assert french.bytes == len(unicodedata.normalize("NFC", FRENCH).encode())  # texts are compared in NFC
    assert code.tokens == (9, len(qwen_vocab.encode("x = 1234\n")))
    assert french.relative(1) == french.tokens[1] / french.tokens[0]
    assert french.relative(0) == 1
    assert any("file of another language (first: sw.txt)" in note for note in compared.notes)
    assert any(note.startswith("no text for he, ar") for note in compared.notes)


def test_tables_and_json_say_the_same(command, byte_vocabulary, folder, qwen_vocab):
    words = ("compression", "qwen", f"--base=per byte={byte_vocabulary}", "--text", folder)
    code, stdout, _ = command(*words)
    assert code == 0
    tokens = len(qwen_vocab.encode(THAI)) + len(qwen_vocab.encode(THAI * 2))
    size = 3 * len(THAI.encode())
    assert re.search(rf"\| th +\| +{size} \| +{tokens / size:.2f} \|\n", stdout)  # relative
    assert re.search(rf"\| th +\| +1\.00 \| +{size / tokens:.2f} \|\n", stdout)  # bytes per token: the base, then qwen
    assert "Tokens relative to per byte (lower is better):" in stdout
    numbers = json.loads(command(*words, "--json")[1])
    assert numbers["base"] == "per byte"
    row = numbers["languages"][0]
    assert (row["language"], row["tokens"]) == ("th", {"per byte": size, "qwen": tokens})
    assert row["relative"]["qwen"] == round(tokens / size, 4)


def test_udhr_layout_is_read_by_tag(tmp_path):
    rows = [
        {"code": "tha", "iso6393": "tha", "bcp47": "th", "text": "ก"},
        {"code": "eng", "iso6393": "eng", "bcp47": "en", "text": "one"},
        {"code": "tha2", "iso6393": "tha", "bcp47": "th", "text": "ข"},
        {"code": "cmn_hant", "iso6393": "cmn", "bcp47": "zh-Hant", "text": "繁"},  # another script than is usual
        {"code": "068", "iso6393": "fra", "bcp47": "fr", "text": "Welche"},  # a dialect under the tag of French
        {"code": "por_BR", "iso6393": "por", "bcp47": "pt-BR", "text": "um"},
        {"iso6393": "jpn", "text": "一"},
        {"language": "ar", "text": "  "},
        {"text": "no tag"},
        {"bcp47": "en"},
        {"bcp47": "en", "text": "\ud800"},
        "not an object",
    ]
    path = tmp_path / "udhr.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)) + "\nbroken")
    report = Report()
    found = [pair for pair in compression.texts(path, report, 1000) if pair[0] != "code"]
    assert found == [("th", "ก"), ("en", "one"), ("th", "ข"), ("pt", "um"), ("ja", "一")]
    assert report['line without "text" and "bcp47", "iso6393" or "language"'] == [3, "udhr.jsonl.gz@482"]
    assert sum(count for reason, (count, _) in report.items() if "JSON" in reason) == 2  # a text, and no JSON
    assert report["text of another language"] == [2, "udhr.jsonl.gz@199"]


def test_damaged_gzip_keeps_what_can_be_read(tmp_path):
    import random

    noise = "".join(random.Random(0).choices("abcdefgh", k=200_000))
    data = gzip.compress((json.dumps({"bcp47": "en", "text": "one"}) + "\n" + json.dumps({"text": noise})).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(data[: len(data) // 2])
    report = Report()
    found = list(compression.texts(tmp_path / "cut.jsonl.gz", report, 1000))
    assert [text for code, text in found if code != "code"] == ["one"]
    assert "truncated gzip, the rest of the file" in report


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("th", "th"), ("THA", "th"), ("pt-BR", "pt"), ("zh", "zh"), ("zh-Hans", "zh"), ("zh_hans", "zh"), ("cmn", "zh"),
        ("zh-Hant", None), ("vi-Hani", None), ("ara", "ar"), ("arb", "ar"), ("de-1901", "de"), ("sw", None), ("", None),
    ],
)  # fmt: skip
def test_tags_of_languages(tag, wanted):
    assert compression.language(tag) == wanted


def test_no_more_than_the_limit_of_a_language_is_read(byte_vocabulary, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "en.jsonl").write_text("\n".join(json.dumps({"text": "ten bytes."}) for _ in range(100)))
    (folder / "fr.txt").write_text("tout")
    (folder / "code.py").write_text("pass")
    (folder / "de.txt").write_text("")
    compared = compression.compare([str(byte_vocabulary)], folder, 25)
    assert {row.code: (row.documents, row.bytes) for row in compared.languages} == {
        "fr": (1, 4), "en": (3, 30), "code": (1, 4),
    }  # fmt: skip
    assert any("file without text" in note and "de.txt" in note for note in compared.notes)


def test_files_that_mix_languages_are_counted_by_language(byte_vocabulary, tmp_path):
    rows = [
        {"bcp47": "en" if i % 2 else "fr", "text": "x" * (i + 1)} for i in range(2500)
    ]  # 3 MB: several batches of each
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    compared = compression.compare([str(byte_vocabulary)], path, 10_000_000)
    counted = {row.code: (row.documents, row.bytes, *row.tokens) for row in compared.languages if row.code != "code"}
    assert counted == {"fr": (1250, 1250**2, 1250**2), "en": (1250, 1250 * 1251, 1250 * 1251)}


def test_what_cannot_be_compared_is_refused(command, byte_vocabulary, folder, tmp_path):
    code, _, stderr = command("compression", "qwen")
    assert code == 2
    assert "compression needs --text: a folder with a file per language" in stderr
    assert "png" in command("compression", "qwen", "--text", folder, "--out=x.pdf")[2]
    assert "no texts at" in command("compression", byte_vocabulary, "--text", tmp_path / "none")[2]
    assert "two vocabularies are called 'bytes'" in command(
        "compression", byte_vocabulary, byte_vocabulary, "--text", folder
    )[2]  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "sw.txt").write_text("habari")
    code, _, stderr = command("compression", byte_vocabulary, "--text", empty)
    assert code == 1
    assert "empty has no text of a language of the report; skipped" in stderr
    assert "skipped 1 x file of another language (first: sw.txt)" in stderr


def test_the_shape_of_the_reports_figure_on_the_udhr(shared, byte_vocabulary, tmp_path):
    """Report, Figure 3, in bytes per token: of all its languages Qwen spends most on Polish and fewest on Russian."""
    compared = compression.compare(["qwen"], shared / "udhr" / "udhr.jsonl.gz", 100_000)
    assert [row.code for row in compared.languages] == [*compression.LANGUAGES, "code"]
    density = {row.code: row.bytes / row.tokens[0] for row in compared.languages}
    assert density["en"] == pytest.approx(5.23, abs=0.03)  # measured for the published vocabulary
    assert density["ru"] == pytest.approx(6.22, abs=0.03)
    assert density["pl"] == pytest.approx(3.07, abs=0.03)
    assert density["th"] == pytest.approx(5.25, abs=0.03)
    assert load_tokenizer("qwen").size == compared.vocabularies[0].size
