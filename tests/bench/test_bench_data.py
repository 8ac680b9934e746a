"""`python -m qwenjax.bench data`: what it measures, and that it says so."""

import inspect
import json
import random
import subprocess
import sys

import pytest

from qwenjax.bench import data
from qwenjax.bench.__main__ import main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Little to encode and read."""
    monkeypatch.setattr(data, "SAMPLE", 1 << 14)
    monkeypatch.setattr(data, "BATCH", 4)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    source = inspect.getsource(random)
    rows = [source[at : at + 2000] for at in range(0, len(source), 2000)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def test_everything_is_measured(text, capsys):
    assert main(["data", str(text), "--workers=1", "--rounds=2", "--appetite=1000", "--json"]) == 0
    out, progress = capsys.readouterr()
    result = json.loads(out)
    assert result["bytes"] == len(inspect.getsource(random).encode())
    assert 2 < result["bytes"] / result["tokens"] < 6  # of English and code with the Qwen vocabulary
    assert list(result["tokenise"]) == ["1"]
    rates = [
        *(rate for rates in result["encode_mb_per_cpu_second"].values() for rate in rates.values()),
        *result["tokenise"]["1"].values(),
        *result["stream_tokens_per_cpu_second"].values(),
    ]
    assert len(rates) >= 6
    for rate in rates:
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
    slowest = min(rate["median"] for rate in result["stream_tokens_per_cpu_second"].values())
    assert result["ratio_to_appetite"] == slowest / 1000
    assert list(result["order_microseconds_per_row"]["rows"]) == ["0", "1000000", "1000000000", "1000000000000"]
    assert result["shard_bytes_per_token"] > 1
    assert "from end to end" in progress
    printed = data.table(result)
    assert "x the appetite of 1,000 tokens per second and host" in printed
    assert f"{result['tokens']:,} tokens of qwen" in printed


def test_cpu_seconds_of_ended_children_count():
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    cpu, _ = data._cpu_and_wall_seconds(lambda: subprocess.run([sys.executable, "-c", burn], check=True))
    assert cpu > 0.28  # the clock has ticks of 0.01 s


def test_no_text_is_an_error(tmp_path, capsys):
    assert main(["data", str(tmp_path / "absent.jsonl")]) == 1
    assert "absent.jsonl" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["data", str(tmp_path / "empty.jsonl")]) == 1
    assert "no document" in capsys.readouterr().err
