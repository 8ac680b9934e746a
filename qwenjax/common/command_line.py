"""What all commands share: help texts, exit codes, and errors as one line.

A command is a module, or an object with the same members. Its docstring is the help text, `EXAMPLES` follows the
options, `arguments(add)` declares them (`add` is argparse's add_argument), and `run(options)` does the work and returns
an exit code. It imports heavy modules inside `run`, so that `--help` is instant.
"""

import argparse
import inspect
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 3
CODES = "exit codes: 0 done, 1 failed, 2 bad usage, 3 interrupted (run the same command again)"
RAW = argparse.RawDescriptionHelpFormatter


class Usage(ValueError):
    """The command line asks for something that does not exist or does not fit; nothing was done."""


def main(name: str, description: str, commands: dict[str, ModuleType | object], argv: list[str] | None = None) -> int:
    """Parses `python -m NAME COMMAND …` and runs the command; returns the exit code. Errors become one line."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description, formatter_class=RAW)
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for word, module in commands.items():
        summary = module.__doc__.strip().splitlines()[0]
        _declare(added.add_parser(word, help=summary, formatter_class=RAW), module)
    return _run(parser.parse_args(argv))


def main_of(name: str, module: ModuleType, argv: list[str] | None = None) -> int:
    """The same for `python -m NAME …`, a command without subcommands. `options.argv` are its words."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", formatter_class=RAW)
    _declare(parser, module)
    words = sys.argv[1:] if argv is None else argv
    return _run(parser.parse_args(words, argparse.Namespace(argv=words)))


def _declare(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    parser.description = inspect.cleandoc(module.__doc__)
    parser.epilog = f"{module.EXAMPLES.strip()}\n\n{CODES}"
    module.arguments(parser.add_argument)
    parser.set_defaults(run=module.run)


def _run(options: argparse.Namespace) -> int:
    # SIGTERM counts as an interruption, too. SIGINT is set because a shell starts background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # terminals and pipes without UTF-8 end nothing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again, finished work is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        sys.stderr.close()
        return DONE
    except (ValueError, OSError) as error:
        if os.environ.get("QWENJAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return USAGE if isinstance(error, Usage) else FAILED


def natural(text: str, least: int = 0) -> int:
    """Type of an option that is a whole number from 0."""
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
    return int(text)


def positive(text: str) -> int:
    """Type of an option that is a whole number from 1."""
    return natural(text, least=1)


def keep_programs() -> None:
    """Makes jax keep compiled programs in the user's cache folder, or in that of JAX_COMPILATION_CACHE_DIR."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "qwenjax" / "xla"))
