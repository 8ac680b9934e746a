"""`qwenjax COMMAND …`, or `python -m qwenjax COMMAND …`: the same as `python -m qwenjax.COMMAND …`."""

import ast
import runpy
import sys
from pathlib import Path

from qwenjax.common.command_line import CODES, DONE, USAGE
from qwenjax.config.overrides import suggest

COMMANDS = ("train", "generate", "chat", "eval", "convert", "data", "tokenizer", "plan", "profile", "cluster", "bench")
EXAMPLES = """examples:
  qwenjax train --exp=quickstart
  qwenjax generate --model=runs/quickstart 'def main('
  qwenjax train --help
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command, or lists all of them; returns the exit code. A command exits by SystemExit, with its own code."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        try:
            print(overview(), flush=True)
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
            sys.stderr.close()
        return DONE
    if name not in COMMANDS:
        print(f"error: no command {name!r}.{suggest(name, COMMANDS)} Known: {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE
    sys.argv = [f"qwenjax.{name}", *words]
    # alter_sys: processes that the command starts find the module of the command as their main module
    runpy.run_module(f"qwenjax.{name}", run_name="__main__", alter_sys=True)
    return DONE


def overview() -> str:
    """All commands with a line each, read from their source files without importing them."""
    lines = [f"  {name:<10} {_summary(name)}" for name in COMMANDS]
    return "\n".join(
        ["usage: qwenjax COMMAND … (or python -m qwenjax.COMMAND …)", "", "commands:", *lines, "", EXAMPLES, CODES]
    )


def _summary(name: str) -> str:
    """First sentence of the docstring of a command."""
    text = (Path(__file__).parent / name / "__main__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)).partition("\n")[0].partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
