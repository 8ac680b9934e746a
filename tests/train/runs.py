"""Tiny whole runs for tests: in this process, as a command, or as two commands that train as one."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from paths import ROOT

from qwenjax.common.jsonl import read_rows
from qwenjax.config import AdamW, Compute, Data, Experiment, ModelConfig, Source
from qwenjax.train.loop import fit

CLOCK = {"tokens_per_second", "seconds_left", "mfu"}


def experiment(corpus: Path, **change) -> Experiment:
    base = Experiment(
        name="tiny",
        model=ModelConfig(vocab=512, layers=1, embed=16, heads=2, ffn=32, context=256),
        data=Data(
            (Source(text=str(corpus / "text.jsonl")),), tokenizer="train:512", seq_len=32, batch_size=8, eval_tokens=600
        ),
        optim=AdamW(peak_lr=1e-2, warmup_steps=2),
        compute=Compute(dtype="float32", remat="none"),
        steps=12,
        log_every=1,
        eval_every=6,
        save_every=4,
        dropout=0.1,
        prompts=("def ",),
    )
    return replace(base, **change)


def run(experiment: Experiment, corpus: Path, workdir: Path, **options):
    return fit(experiment, workdir, data_root=corpus / "data", **options)


def state(workdir: Path, step: int) -> dict:
    """Everything a checkpoint holds, as hashes and counters."""
    meta = json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    return {"hashes": meta["hashes"], "next_row": meta["next_row"]}


def numbers(workdir: Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(workdir / "metrics.jsonl")]


def arguments(corpus: Path, workdir: Path, config_file: Path) -> list[str]:
    return [f"--exp={config_file}", f"--workdir={workdir}", f"--data-root={corpus / 'data'}"]


def command(corpus, workdir, config_file, *more, limit="", environment=None) -> subprocess.Popen:
    """`python -m qwenjax.train` on one device, under a `ulimit` if one is given."""
    argv = [sys.executable, "-m", "qwenjax.train", *arguments(corpus, workdir, config_file), *more]
    common = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(corpus / "xla")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["bash", "-c", f'{limit}exec "$@"', "bash", *argv],
        stderr=pipe,
        stdout=pipe,
        text=True,
        cwd=ROOT,
        env=common | (environment or {}),
    )


def two(corpus, workdir, config_file, *more) -> list[subprocess.Popen]:
    """Two hosts of four devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    hosts = []
    for i in range(2):
        host = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
        host |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "NPROC": "16"}
        host |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
        hosts.append(command(corpus, workdir, config_file, *more, environment=host))
    return hosts


def ended(*processes: subprocess.Popen, seconds: float = 800) -> tuple[list[int], list[str]]:
    """Exit codes, and what was said on stderr."""
    said = [process.communicate(timeout=seconds)[1] for process in processes]
    return [process.returncode for process in processes], said


def wait_for(condition, process: subprocess.Popen, seconds: float = 800) -> None:
    """Until it is so; the process must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)


def child(parent: subprocess.Popen) -> int:
    """Process id of the only child of a `--restarts` parent; 0 between two of them."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    return int(children[0]) if children else 0
