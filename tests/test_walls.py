"""The plan of the house (docs/architecture.md): imports point downward and make no circle, pure files stay pure, files
and functions are of a readable size, --help is instant."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "qwenjax"
LEVELS = [  # of the package, lowest first
    {"common"},
    {"config"},
    {"sharding", "xla", "sources", "chat_format"},
    {"tokenizer", "model", "objectives"},
    {"optim", "generate", "interop", "data", "checkpoint", "telemetry"},
    {"api"},
    {"eval"},
    {"train"},
    {"sweeps"},
    {"bench", "plan", "cluster", "profile", "chat", "convert"},
]
INNER_LEVELS = {  # of the rooms inside a room; `__init__` is the package's own file
    "config": [
        {"overrides"},
        {"model", "data", "optim"},
        {"alignment"},
        {"experiment"},
        {"__init__"},
        {"lookup"},
    ],
    "tokenizer": [
        {"base"},
        {"bpe", "sentencepiece"},
        {"hub"},
        {"hub_folder"},
        {"gguf"},
        {"__init__"},
        {"vocabulary"},
    ],
    "model": [{"attention", "cache", "quantise", "rope"}, {"layers"}, {"transformer"}, {"lora", "reward_head"}],
    "interop": [{"__init__"}, {"awq", "gptq"}, {"huggingface"}, {"gguf", "peft"}],
    "data": [{"shards"}, {"conversations"}, {"batches"}, {"inspect"}],
    "api": [
        {"checkpoint_path", "scoring", "streaming"},
        {"generation_defaults", "parameters"},
        {"model", "reward_model"},
        {"__init__", "best_of"},
        {"jsonl_jobs", "options"},
    ],
    "eval": [{"task", "accuracy"}, {"tasks", "runner"}],
    "train": [{"step"}, {"operations", "backbone"}, {"task"}, {"rl"}, {"stages"}, {"loop"}],
}
PURE = ("config", "model", "objectives", "optim", "generate")
EFFECTS = {"os", "pathlib", "time", "logging", "random", "subprocess"}
BUDGETS = {
    "lines": 26_500,  # 25,000 for the house; 1,500 for foreign checkpoints that behave as at home
    "files": 206,
    "lines of a function": 80,
    "lines of a file": 350,
    "bytes of README.md": 9_000,
}
COMMANDS = [
    "qwenjax",
    "qwenjax.train",
    "qwenjax.generate",
    "qwenjax.chat",
    "qwenjax.convert",
    *(f"qwenjax.data {name}" for name in ("tokenize", "publish", "stats", "show", "convert")),
    *(f"qwenjax.tokenizer {name}" for name in ("train", "extend", "compression")),
    *(f"qwenjax.bench {name}" for name in ("train", "data", "decode")),
    "qwenjax.plan",
    "qwenjax.eval",
    "qwenjax.profile",
    *(
        f"qwenjax.cluster {name}"
        for name in ("create", "bootstrap", "launch", "logs", "status", "profile", "stop", "delete", "worker")
    ),
]


# ---- what imports what ----


def module(path: Path) -> str:
    """The dotted name of a file; of a package's `__init__.py`, the package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def files() -> dict[str, Path]:
    """Module -> file, for all of the package."""
    return {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def names(path: Path) -> frozenset[str]:
    """Every module that a file imports and every name that it takes from one, anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at its top or inside a function."""
    edges = {}
    for name, path in files().items():
        imported = {n if n in files() else n.rpartition(".")[0] for n in names(path)} & files().keys()
        edges[name] = imported - {name}
    return edges


def below(name: str, room: str) -> str | None:
    """The part of `room` that a module is in: its child, `__init__` for the room's own file, None outside."""
    if name == room:
        return "__init__"
    return name.removeprefix(room + ".").split(".")[0] if name.startswith(room + ".") else None


def upward(room: str, levels: list[set[str]]) -> list[str]:
    """Imports between the parts of a room that do not point to a lower level; parts without a level fail."""
    level = {part: n for n, parts in enumerate(levels) for part in parts}
    wrong = []
    for name, imported in graph().items():
        here = below(name, room)
        if here is None or name.endswith("__main__") or (here == "__init__" and here not in level):
            continue  # a `__main__` is a command, above everything
        assert here in level, f"{name} is in no level of {room}"
        for other in imported:
            there = below(other, room)
            if there in level and there != here and level[there] >= level[here]:
                wrong.append(f"{name} imports {other}")
    return wrong


def test_imports_point_downward():
    assert not upward("qwenjax", LEVELS)


@pytest.mark.parametrize("room", INNER_LEVELS)
def test_imports_point_downward_inside_a_room(room):
    assert not upward(f"qwenjax.{room}", INNER_LEVELS[room])


def test_every_command_is_on_top():
    """Nothing imports a `__main__`."""
    for name, imported in graph().items():
        assert not [other for other in imported if other.endswith("__main__")], name


def test_no_module_imports_itself_through_others():
    state: dict[str, str] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == "done":
            return
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        for other in sorted(graph()[name]):
            visit(other, (*path, name))
        state[name] = "done"

    for name in graph():
        visit(name, ())


# ---- who may take what ----


def inside(*rooms: str) -> dict[str, Path]:
    """The files of rooms of the package."""
    return {name: path for name, path in files().items() if below(name, "qwenjax") in rooms}


def taken(path: Path, *prefixes: str) -> set[str]:
    """The imported names that begin with one of the dotted prefixes."""
    return {n for n in names(path) if any(n == p or n.startswith(p + ".") for p in prefixes)}


def test_pure_files_have_no_effects():
    for name, path in inside(*PURE).items():
        if name != "qwenjax.config.lookup" and not name.endswith("__main__"):  # lookup reads the files of experiments
            assert not {n.split(".")[0] for n in names(path)} & EFFECTS, name


def test_config_does_not_know_jax():
    for name, path in inside("config", "common").items():
        heads = {n.split(".")[0] for n in names(path)}
        assert name == "qwenjax.common.command_line" or not heads & {"jax", "flax", "optax", "numpy"}, name


def test_model_and_objectives_take_only_two_functions_from_sharding():
    for name, path in inside("model", "objectives").items():
        assert taken(path, "qwenjax.sharding") <= {f"qwenjax.sharding.{n}" for n in ("constrain", "per_device")}, name


def test_objectives_know_no_model():
    for name, path in inside("objectives").items():
        assert taken(path, "qwenjax") <= taken(path, "qwenjax.objectives", "qwenjax.sharding"), name


def test_torch_and_transformers_stay_in_few_places():
    allowed = {"qwenjax.interop", "qwenjax.convert.check", "qwenjax.bench"}
    for name, path in files().items():
        if taken(path, "torch", "transformers"):
            assert any(name == place or name.startswith(place + ".") for place in allowed), name


def test_evaluation_sees_a_model_and_not_its_parameters():
    """Only the entropy of attention, which is nothing that a `Model` gives, looks inside."""
    for name, path in inside("eval", "chat").items():
        if name != "qwenjax.eval.tasks.entropy":
            assert not taken(path, "qwenjax.model", "qwenjax.checkpoint", "qwenjax.interop"), name
            assert ".params" not in path.read_text(), name


def test_only_the_sources_of_a_vocabulary_are_read_by_the_tokenizer():
    for name, path in inside("tokenizer").items():
        if below(name, "qwenjax.tokenizer") not in ("vocabulary", "__main__"):
            assert not taken(path, "qwenjax.sources"), name


# ---- sizes ----


def measured() -> dict[str, tuple[int, str]]:
    """What BUDGETS limits: the size, and where the largest one is."""
    texts = {name: path.read_text() for name, path in files().items()}
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name}:{node.name}")
        for name, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    lines = [(len(text.splitlines()), name) for name, text in texts.items()]
    return {
        "lines": (sum(n for n, _ in lines), "qwenjax/"),
        "files": (len(texts), "qwenjax/"),
        "lines of a function": max(functions),
        "lines of a file": max(lines),
        "bytes of README.md": ((ROOT / "README.md").stat().st_size, "README.md"),
    }


@pytest.mark.parametrize("what", BUDGETS)
def test_budgets(what):
    size, where = measured()[what]
    print(f"{what}: {size:,} of {BUDGETS[what]:,} ({where})")
    assert size <= BUDGETS[what], f"{where} has too many {what}"


# ---- --help ----


@pytest.mark.parametrize("command", ["import", *COMMANDS])
def test_help_loads_nothing_heavy(command):
    """`--help` of every command, and the bare import, without jax or anything that imports it."""
    name, *words = command.split()
    call = (
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)" if command != "import" else "import qwenjax"
    )
    code = f"""
import runpy, sys
sys.argv = [{name!r}, *{words!r}, "--help"]
try:
    {call}
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = sorted(set(sys.modules) & {{"jax", "flax", "orbax", "grain", "matplotlib", "torch", "sentencepiece"}})
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    if command != "import":
        assert "examples:" in done.stdout
