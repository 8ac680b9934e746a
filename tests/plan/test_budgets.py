"""What steps on TPU slices may take: peak memory, matmul FLOPs and bytes of collectives, per device, as compiled once.

A change that moves one of them by more than 2 % is either a regression or a number to write anew, on purpose:
`python tests/plan/test_budgets.py` compiles all rows and rewrites budgets.json. Needs the extra 'tpu-aot'.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("budgets.json")
ROWS = {row["name"]: row for row in json.loads(FILE.read_text())}
pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu-aot'")


def measured(words: list[str]) -> dict[str, float]:
    """Compiles in a process of its own, since one that has libtpu looks for TPUs."""
    command = [sys.executable, "-m", "qwenjax.plan", "--json", *words]
    environment = os.environ | {"XLA_FLAGS": "", "QWENJAX_TRACEBACK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout)
    return {
        "peak_gib": round(plan["peak_bytes"] / (1 << 30), 3),
        "matmul_tflop": round(plan["matmul_flops"] / 1e12, 2),
        "collective_gb": round(sum(row["gb"] for row in plan["collectives"].values()), 2),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if row["quick"] else [pytest.mark.slow]) for name, row in ROWS.items()]
)
def test_a_step_stays_within_its_budget(name):
    row = ROWS[name]
    assert measured(row["words"]) == pytest.approx({key: row[key] for key in measured_keys(row)}, rel=0.02)


def measured_keys(row: dict) -> list[str]:
    return [key for key in row if key not in ("name", "words", "quick")]


if __name__ == "__main__":
    rows = [row | measured(row["words"]) for row in ROWS.values() if not sys.argv[1:] or row["name"] in sys.argv[1:]]
    kept = {row["name"]: row for row in rows}
    FILE.write_text("[\n" + ",\n".join(" " + json.dumps(kept.get(name, row)) for name, row in ROWS.items()) + "\n]\n")
