"""`python -m qwenjax.data`: help, exit codes, and that `show` tells the truth."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from data_doubles import ByteTokenizer, corpus

import qwenjax.tokenizer
from qwenjax.data.__main__ import main
from qwenjax.data.batches.text import TextMixture
from qwenjax.data.inspect.show import END, row_lines, text_row
from qwenjax.data.shards.format import Shards
from qwenjax.data.shards.write import tokenize

pytest_plugins = ["data_fixtures"]


@pytest.fixture
def as_bytes(monkeypatch):
    monkeypatch.setattr(qwenjax.tokenizer, "load_tokenizer", lambda name: ByteTokenizer())


@pytest.mark.parametrize("command", [[], ["tokenize"], ["show"]])
def test_help_is_quick_and_light(command):
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from qwenjax.data.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'jax', 'grain', 'numpy', 'orbax', 'tiktoken'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 1
    assert "python -m qwenjax.data" in done.stdout


def test_tokenizing_loads_neither_jax_nor_grain(tmp_path):
    corpus(tmp_path / "a.jsonl", 20)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from data_doubles import ByteTokenizer\n"
        "from qwenjax.data.shards.write import tokenize\n"
        "import qwenjax.data.batches.text, qwenjax.data.shards.prepare\n"
        "tokenize([sys.argv[2]], sys.argv[3], ByteTokenizer()).read('train', 0, 10)\n"
        "assert not {'jax', 'grain', 'orbax'} & set(sys.modules)"
    )
    here = os.path.dirname(__file__)
    subprocess.run([sys.executable, "-c", code, here, tmp_path / "a.jsonl", tmp_path / "out"], check=True)


def test_tokenize_reports_and_show_says_where_rows_come_from(tmp_path, as_bytes, capsys, monkeypatch):
    texts = corpus(tmp_path / "a.jsonl", 200)
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("broken\n")
    assert main(["tokenize", str(tmp_path / "a.jsonl"), f"--out={tmp_path / 'shards'}", "--validation=0"]) == 0
    out = capsys.readouterr().out
    assert "skipped 1 x bad JSON line" in out
    assert "train: " in out
    assert "200 documents" in out

    (tmp_path / "exp.py").write_text(f"""
from qwenjax.config import *
def experiment():
    data = Data(sources=(Source(shards={str(tmp_path / "shards")!r}),), tokenizer="bytes", seq_len=128, batch_size=3)
    return Experiment(name="e", model=ModelConfig(vocab=257, layers=1, embed=8, heads=2, ffn=8), data=data, steps=10)
""")
    monkeypatch.chdir(tmp_path)
    assert main(["show", "--exp=exp.py", "--step=2", "--rows=2", "--set=seed=3", "--set=data.seq_len=100"]) == 0
    shown = capsys.readouterr().out
    mixture = TextMixture([Shards(tmp_path / "shards")], [1], 100, 3)
    rows = [text_row(mixture, row, ByteTokenizer()) for row in (6, 7)]
    assert shown == "\n".join(line for row in rows for line in row_lines(row, by_document=True)) + "\n"
    assert main(["show", "--exp=exp.py", "--row=6", "--rows=2", "--set=seed=3", "--set=data.seq_len=100"]) == 0
    assert capsys.readouterr().out == shown
    # and what is described is what the source file holds
    found = re.findall(r"--- (\S+): its tokens (\d+) to (\d+) of (\d+), (\d+) to (\d+) of the row", shown)
    found = [(origin, *map(int, numbers)) for origin, *numbers in found]
    tokens = [mixture.row(row).tolist() for row in (6, 7)]
    cuts = [n for n, part in enumerate(found) if part[4] == 0]  # a part at 0 begins a row
    for row, parts in zip(tokens, (found[: cuts[1]], found[cuts[1] :])):
        for origin, a, b, of, first, last in parts:
            whole = [*texts[origin].encode(), 256]
            assert len(whole) == of
            assert row[first : last + 1] == whole[a : b + 1]
        assert parts[-1][-1] == 100


def test_describe_marks_borders_and_cuts(tmp_path):
    """'abcdef', 'ghi' and 'jklmnop' in rows of 5 tokens: every row is a piece of the stream, cut ends marked."""
    for name in ("abcdef", "ghi", "jklmnop"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name[0]}.txt").write_text(name)
    made = tokenize([tmp_path / "texts"], tmp_path / "out", ByteTokenizer(), validation=0, progress=False)
    mixture = TextMixture([made], [1], 4, 0)
    whole = "".join(chr(t) if t < 256 else END for t in made.read("train", 0, 19).tolist())
    for row in range(20):
        place, lines = mixture.locate(row), row_lines(text_row(mixture, row, ByteTokenizer()), by_document=True)
        assert f"tokens {place.offset} to {place.offset + 4}" in lines[0]
        texts = [line for line in lines[1:] if line and not line.startswith("---")]
        joined = "".join(texts).replace("…", "")
        assert joined in whole
        assert len(joined.replace(END, "|")) == 5
        spans = made.documents("train", place.offset, place.offset + 5)
        assert texts[0].startswith("…") == (spans[0].start < place.offset)
        assert texts[-1].endswith("…") == (spans[-1].stop > place.offset + 5)
        assert all(text.endswith(END) for text in texts[:-1])


def test_exit_codes(tmp_path, as_bytes, capsys):
    assert main(["tokenize", str(tmp_path / "nowhere"), f"--out={tmp_path / 'out'}"]) == 1
    assert "error: no file or folder" in capsys.readouterr().err
    assert main(["show", "--exp=nothing-of-this-name", "--step=1"]) == 2
    assert "no experiment 'nothing-of-this-name'" in capsys.readouterr().err
    assert main(["show", "--exp=x", "--step=1", "--set", "seed"]) == 2
    assert main(["show", "--exp=quickstart"]) == 2
    assert "wanted --step=N or --row=R" in capsys.readouterr().err
    assert main(["show", "--exp=tiny_sft", "--step=0"]) == 2
    assert "--step and --row show pretraining rows. For chat data: data show FILE" in capsys.readouterr().err
    for wrong in ([], ["tokenise"], ["show", "--exp=x", "--step=-1"], ["tokenize", "x"]):
        with pytest.raises(SystemExit) as end:
            main(wrong)
        assert end.value.code == 2


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_is_3_and_resumes(tmp_path, sign):
    """The command on a tokenizer so slow that it is still at work when the signal comes."""
    corpus(tmp_path / "a.jsonl", 60)
    code = (
        "import sys; sys.path.insert(0, {here!r})\n"
        "import qwenjax.tokenizer; from data_doubles import ByteTokenizer\n"
        "from qwenjax.data.shards import write as room; room.UNIT_BYTES = (3000, 3000)\n"
        "qwenjax.tokenizer.load_tokenizer = lambda name: ByteTokenizer({delay})\n"
        "from qwenjax.data.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    here = os.path.dirname(__file__)
    arguments = ["tokenize", str(tmp_path / "a.jsonl"), f"--out={tmp_path / 'out'}"]
    slow = [sys.executable, "-c", code.format(here=here, delay=0.05), *arguments]
    process = subprocess.Popen(slow, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("out/unfinished/unit-*.array_record")):
        time.sleep(0.01)
    process.send_signal(sign)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 3, error
    assert "run the same command again" in error
    assert "Traceback" not in error
    quick = [sys.executable, "-c", code.format(here=here, delay=0), *arguments]
    done = subprocess.run(quick, capture_output=True, text=True, check=True)
    assert "resuming unfinished work" in done.stderr
    assert "is complete" in done.stdout
