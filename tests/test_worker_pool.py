"""Processes that do work beside the calling one."""

import subprocess
import sys

SCRIPT = """
from qwenjax.common.processes import worker_pool
print("the script runs", flush=True)
with worker_pool(2, dict) as submit:
    print(submit(len).result(), submit(str).result())
import __main__
print(__main__.__file__ == __file__)
"""


def test_a_script_without_a_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["the script runs", "0 {}", "True"], done.stderr
