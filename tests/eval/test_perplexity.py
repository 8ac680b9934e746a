"""Table 3: what is scored, what is kept, what is printed."""

import math

import eval_doubles as doubles
import pytest

from qwenjax.eval.task import ResultCache, Settings
from qwenjax.eval.tasks import perplexity
from qwenjax.eval.tasks.perplexity import ROWS, TABLE_3, measure, plot, read_text, table, variant

TEXT = "To be, or not to be: that is the question, said no byte. "


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 4)
    return str(path)


@pytest.fixture
def parts(tmp_path):
    return ResultCache(tmp_path / "out", {"model": "double"})


def test_equally_likely_tokens_have_the_perplexity_of_their_number(text, parts):
    """256 bytes, all alike: perplexity 256, 8 bits per byte, at every length."""
    result = measure(doubles.model(blank=True), Settings(text, lengths=(8, 16, 32), tokens=70), parts)
    for row in ROWS:
        for length, part in result["rows"][row].items():
            windows = 70 // int(length)  # what is left over is not read
            assert part["windows"] == windows
            assert part["tokens"] == part["bytes"] == windows * (int(length) - 1)  # all but a window's first
            assert perplexity.perplexity(part) == pytest.approx(256, rel=1e-5)
            assert perplexity.bits_per_byte(part) == pytest.approx(8, rel=1e-5)


def test_a_token_before_every_text_takes_a_place_and_is_not_scored(text, parts):
    model = doubles.model(blank=True)
    model.tokenizer.prefix = (0,)
    part = measure(model, Settings(text, lengths=(8,), tokens=70), parts)["rows"]["plain"]["8"]
    assert (part["windows"], part["tokens"]) == (10, 70)  # 7 of the text in each, and now each has something before it


def test_up_to_the_training_length_the_rows_are_one_model_and_read_once(text, parts, monkeypatch):
    read = []
    score = perplexity._score
    monkeypatch.setattr(perplexity, "_score", lambda model, row, *rest: read.append(row) or score(model, row, *rest))
    result = measure(doubles.model(), Settings(text, lengths=(4, 8, 24)), parts)
    assert read == ["plain", "plain", "plain", "+ ntk", "+ ntk + logn", "+ ntk + logn + window"]
    assert len({result["rows"][row]["8"]["nats"] for row in ROWS}) == 1
    assert len({result["rows"][row]["24"]["nats"] for row in ROWS}) == 4


def test_an_interrupted_table_goes_on_where_it_was(text, parts, tmp_path, monkeypatch):
    model, settings = doubles.model(), Settings(text, lengths=(8, 24))
    whole = measure(model, settings, parts)
    log = tmp_path / "out" / "parts.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote the fourth
    read = []
    score = perplexity._score
    monkeypatch.setattr(perplexity, "_score", lambda model, row, *rest: read.append(row) or score(model, row, *rest))
    assert measure(model, settings, ResultCache(tmp_path / "out", {"model": "double"})) == whole
    assert read == ["+ ntk + logn", "+ ntk + logn + window"]
    measure(model, settings, ResultCache(tmp_path / "out", {"model": "another"}))
    assert len(read) == 2 + 5  # what another model gave is not taken for this one's


def test_rows_are_switches_of_the_model():
    plain, ntk, logn, window = (variant(doubles.CONFIG, row) for row in ROWS)
    assert [(c.ntk, c.logn, bool(c.windows)) for c in (plain, ntk, logn, window)] == [
        (False, False, False), (True, False, False), (True, True, False), (True, True, True)
    ]  # fmt: skip
    assert window.windows == (8, 8)  # T in the first four layers, 2T in the next, …
    assert variant(window, "plain") == plain  # whatever the checkpoint says


def test_only_as_much_of_a_file_is_encoded_as_is_needed(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("0123456789" * 100_000)
    asked = []

    class Counting(doubles.Bytes):
        def encode_ordinary(self, text):
            asked.append(len(text))
            return super().encode_ordinary(text)

    assert bytes(read_text(str(path), Counting(), 20)) == b"01234567890123456789"
    assert max(asked) == 160

    class Wordy(doubles.Bytes):  # a token for 50 characters
        def encode_ordinary(self, text):
            return super().encode_ordinary(text)[::50]

    assert len(read_text(str(path), Wordy(), 20)) == 20


def test_a_text_that_is_too_short_or_missing_is_said(text, parts):
    with pytest.raises(ValueError, match="228 tokens of bytes, fewer than a window of 1,024"):
        measure(doubles.model(), Settings(text, lengths=(8, 1024)), parts)
    with pytest.raises(ValueError, match="--text=FILE"):
        measure(doubles.model(), Settings(lengths=(8,)), parts)


def test_published_numbers_stand_beside_ours(text, parts, tmp_path):
    result = {"model": "double", "set": [], **measure(doubles.model(), Settings(text, lengths=(8, 24)), parts)}
    lines = table(result).splitlines()
    head = next(line for line in lines if line.startswith("perplexity"))
    assert head.split()[1:] == ["8", "24", "1024", "2048", "4096", "8192", "16384", "32768"]
    ntk = next(line for line in lines if line.lstrip().startswith("+ ntk ") and "39.35" not in line and "3.66" in line)
    assert ntk.split()[-6:] == ["4.23", "3.78", "3.59", "3.66", "5.71", "-"]
    ours = lines[lines.index(head) + 1]
    assert ours.startswith("double (T=8)")
    nats = result["rows"]["plain"]["24"]["nats"] / result["rows"]["plain"]["24"]["tokens"]
    assert ours.split()[3] == f"{math.exp(nats):.2f}"
    assert {len(line) for line in lines if line.rstrip().endswith("-")} == {len(head)}  # columns are aligned
    assert TABLE_3["Qwen-7B (T=2048)"]["plain"][16384] == 2645.09
    plot(result, tmp_path / "table3.png")
    image = (tmp_path / "table3.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) < 100_000
