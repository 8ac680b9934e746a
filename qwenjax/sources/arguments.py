"""The command-line options of reading text, the same for every command that does."""

import argparse
import re

from qwenjax.common.command_line import Usage

OPTIONS = ("column", "join", "group", "include", "exclude", "limit")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def reading_arguments(add) -> None:
    """Declares the options; they hold for every TEXT of a command."""
    add("--column", type=names, metavar="NAME,…", help="fields of a row that hold its text (default: text)")
    add("--join", type=escaped, metavar="TEXT", help=r"between fields, and between rows of a group (default: '\n\n')")
    add("--group", metavar="NAME", help="consecutive rows with the same value in this field are one document")
    within = "in a folder, read %s files whose path inside it matches; * also matches /; may be repeated"
    add("--include", action="append", metavar="GLOB", help=within % "only")
    add("--exclude", action="append", metavar="GLOB", help=within % "no")
    add("--limit", type=size, metavar="BYTES", help="read about this much of each TEXT, spread over it: 500MB")


def sources(options: argparse.Namespace) -> list:
    """A `config.Source` for each of `options.text`; Usage for options that contradict each other."""
    from qwenjax.config import Source

    given = {name: getattr(options, name) for name in OPTIONS}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    try:
        return [Source(text=text, **given) for text in options.text]
    except ValueError as error:
        raise Usage(str(error)) from None


def names(text: str) -> tuple[str, ...]:
    """The type of an option that lists names."""
    return tuple(name.strip() for name in text.split(","))


def escaped(text: str) -> str:
    r"""The type of an option in which \n and \t stand for a newline and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def size(text: str) -> int:
    """The type of an option that is a number of bytes."""
    match = re.fullmatch(r"([\d_]+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.upper().strip())
    if not match or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; wanted e.g. 500MB, 2GB or 1_000_000")
    return int(float(match[1].replace("_", "")) * UNITS[match[2]])
