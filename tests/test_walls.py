"""The plan of the house (docs/design.md): imports point downward, pure files stay pure, --help is instant."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "qwenjax"
LEVEL = {
    "common": 0,
    "config": 1,
    "sharding": 2, "xla": 2, "sources": 2, "chat_format": 2,
    "tokenizer": 3, "model": 3, "objectives": 3,
    "optim": 4, "generate": 4, "interop": 4, "data": 4, "checkpoint": 4, "telemetry": 4,
    "api": 5,
    "eval": 6,
    "train": 7,
    "sweeps": 8,
    "bench": 9, "plan": 9, "cluster": 9, "profile": 9, "chat": 9, "convert": 9,
    "__main__": 9,
}  # fmt: skip
PURE = ("config", "model", "objectives", "optim", "generate")
EFFECTS = {"os", "pathlib", "time", "logging", "random", "subprocess"}
COMMANDS = [
    "qwenjax.train",
    "qwenjax.generate",
    "qwenjax.chat",
    "qwenjax.convert",
    *(f"qwenjax.data {name}" for name in ("tokenize", "publish", "stats", "show", "convert")),
    *(f"qwenjax.tokenizer {name}" for name in ("train", "extend", "compression")),
    *(f"qwenjax.bench {name}" for name in ("train", "data", "decode", "align")),
    "qwenjax.plan",
    "qwenjax.eval",
    "qwenjax.profile",
    *(
        f"qwenjax.cluster {name}"
        for name in ("create", "bootstrap", "launch", "logs", "status", "profile", "stop", "delete", "worker")
    ),
]


def room(path: Path) -> str:
    return "__main__" if path.name == "__main__.py" else path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "experiments" not in p.parts and p != PACKAGE / "__init__.py"]


def test_imports_point_downward():
    for path in files():
        here = room(path)
        for name in imports(path):
            other = name.split(".")[1] if name.startswith("qwenjax.") else None
            if other in LEVEL and other != here and path.relative_to(PACKAGE).parts[0] != other:
                assert LEVEL[other] < LEVEL[here], f"{path.relative_to(ROOT)} reaches up or sideways to {other}"
        assert here in LEVEL, f"{path.relative_to(ROOT)} is in no room of the plan"


def test_pure_files_have_no_effects():
    for path in files():
        if room(path) in PURE and path.name != "lookup.py":  # the one file of config that reads files
            found = {name.split(".")[0] for name in imports(path)} & EFFECTS
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_model_and_objectives_take_only_two_functions_from_sharding():
    for path in files():
        if room(path) in ("model", "objectives"):
            taken = {n for n in imports(path) if n.startswith("qwenjax.sharding.")}
            assert taken <= {"qwenjax.sharding.constrain", "qwenjax.sharding.per_device"}, path


def test_files_are_of_readable_size():
    for path in files():
        assert len(path.read_text().splitlines()) <= 420, f"{path.relative_to(ROOT)} wants to be two files"


@pytest.mark.parametrize("command", ["qwenjax", *COMMANDS])
def test_help_loads_nothing_heavy(command):
    """`--help` of every command, and the bare import, without jax or anything that imports it."""
    module, *words = command.split()
    call = f"runpy.run_module({module!r}, run_name='__main__')" if command != "qwenjax" else "import qwenjax"
    code = f"""
import runpy, sys
sys.argv = [{module!r}, *{words!r}, "--help"]
try:
    {call}
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = sorted(set(sys.modules) & {{"jax", "flax", "orbax", "grain", "matplotlib", "torch", "sentencepiece"}})
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    if command != "qwenjax":
        assert "examples:" in done.stdout
