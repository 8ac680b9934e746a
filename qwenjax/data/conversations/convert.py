"""Other people's chat data as rows of our schema, with an account of what became of every row.

A row's format (`formats`) gives a prompt with responses; what is asked for, `to`, says which kind of row that becomes:
a conversation takes the best response, a preference all of them, a prompt none, but keeps the reference answer.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qwenjax.common.progress import meter
from qwenjax.data.conversations import docstrings, files, formats, schema
from qwenjax.data.conversations.formats import Exchange
from qwenjax.data.conversations.schema import ConversationRow, PreferenceRow, PromptRow, RowError
from qwenjax.data.conversations.turns import Changed
from qwenjax.sources.documents import STDLIB
from qwenjax.sources.slices import Report

PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]\w*)\}\}")


class Converted(NamedTuple):
    """A row, the place its source has in the file ('NAME:LINE'), and the format that was."""

    place: str
    format: str
    row: ConversationRow | PreferenceRow | PromptRow


@dataclass
class Account:
    """What became of the rows of one or more files."""

    read: int = 0
    written: dict[tuple[str, str, str], int] = field(default_factory=dict)  # (file, format, kind) -> rows
    skipped: Report = field(default_factory=Report)
    changed: Report = field(default_factory=Report)

    @property
    def rows(self) -> int:
        """Rows written."""
        return sum(self.written.values())

    def lines(self) -> list[str]:
        """A table of what was written, and what was changed on the way, for people."""
        header = ("file", "format", "kind", "rows")
        table = [header, *((*key, f"{rows:,}") for key, rows in self.written.items())]
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line[:-1], widths)) + f"  {line[-1]:>{widths[-1]}}"
            for line in table
        ]
        changes = sorted(self.changed.items(), key=lambda item: (-item[1][0], item[0]))
        return lines + [f"changed {count:,} x {reason} (first: {place})" for reason, (count, place) in changes]


def converted(
    path: str | Path,
    account: Account,
    format: str = "auto",
    to: str | None = None,
    strict: bool = False,
    fill: Mapping[str, str] | None = None,
    seen: Callable[[int], object] = lambda size: None,
) -> Iterator[Converted]:
    """The rows of a file, or of 'python-stdlib' (`docstrings`), as rows of our schema.

    Args:
      account: gets the counts.
      format: a key of `formats.FORMATS` that every row is taken for, or 'auto': each row's own.
      to: a kind (`schema.KINDS`); None: what the format is by nature, of 'python-stdlib' conversations.
      strict: raise at the first row that cannot be converted.
      fill: texts for placeholders such as {{name}}; a row with others is refused.
      seen: is told the bytes of each line, unpacked.
    Raises:
      ValueError: no such file or format, or (strict) a bad row: the message has file and line.
    """
    for name, value, known in (("format", format, ("auto", *formats.FORMATS)), ("to", to, (None, *schema.KINDS))):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(filter(None, known))}")
    source, objects = Path(path).name.split(".")[0], files.objects(path, account.skipped, strict, seen)
    if str(path) == STDLIB:
        objects, to = docstrings.rows(), to or "conversation"
    for place, value in objects:
        account.read += 1
        changes: list[str] = []
        try:
            value = _filled(value, fill or {})
            name = formats.recognise(value) if format == "auto" else format
            rows = [
                _row(one, to or formats.FORMATS[name].kind, source, changes.append)
                for one in _read(name, value, changes.append)
            ]
        except (RowError, RecursionError) as error:
            refused = error if isinstance(error, RowError) else RowError("nested too deeply")
            files.skip(refused, place, account.skipped, strict)
            continue
        for reason in changes:
            account.changed.note(reason, place)
        for row in rows:
            key = (Path(path).name, name, schema.kind_of(row))
            account.written[key] = account.written.get(key, 0) + 1
            yield Converted(place, name, row)


def convert(
    paths: Sequence[str | Path],
    out: str | Path,
    format: str = "auto",
    to: str | None = None,
    strict: bool = False,
    fill: Mapping[str, str] | None = None,
) -> Account:
    """Writes the rows of files as one file of our schema, of one kind; see `converted` for the options.

    Raises:
      ValueError: as `converted`; rows of several kinds without `to`; or no row at all. Nothing is written then.
    """
    account = Account()

    def rows() -> Iterator[schema.ChatRow]:
        first: tuple[str, str] | None = None
        for path in paths:
            for place, name, row in converted(path, account, format, to, strict, fill, step):
                kind = schema.kind_of(row)
                first = first or (kind, place)
                if kind != first[0]:
                    raise ValueError(
                        f"{place} ({name}) is a {kind}, but {first[1]} a {first[0]}; a file holds one kind: "
                        f"say --to={first[0]} or --to={kind}, or convert them apart"
                    )
                yield row
        if first is None:
            reasons = "; ".join(account.skipped.lines()) or "there is nothing to read"
            raise ValueError(f"no row could be converted: {reasons}")

    size = sum(files.size(path) for path in paths)
    with meter("converting", size) as step:
        files.write_chat(out, rows())
    return account


def _read(name: str, value: object, changed: Changed) -> Iterator[Exchange]:
    """The exchanges of a row that is taken for a format."""
    format = formats.FORMATS[name]
    if not isinstance(value, dict) or not format.matches(value):
        fields = ", ".join(value) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise RowError(f"not of the format {name}", f"fields {fields}: wanted {format.says}")
    yield from format.read(value, changed)


def _row(one: Exchange, to: str, source: str, changed: Changed) -> schema.ChatRow:
    """The exchange as a checked row of a kind."""
    row: dict = {"tools": one.tools, "id": one.id, "source": one.source or source, "meta": one.meta}
    if to == "preference":
        if len(one.responses) < 2:
            raise RowError("fewer than two responses", f"{len(one.responses)} response: a preference needs two")
        row |= {"prompt": one.prompt, "responses": one.responses, "scores": one.scores}
    elif to == "prompt":
        answer = one.answer or (one.responses[0]["content"] if one.responses else None) or None
        row |= {"prompt": one.prompt, "answer": answer}
    else:
        messages = [*one.prompt, *one.responses[:1]]
        answered = max((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), default=-1)
        if answered < 0:
            raise RowError("no assistant turn", "there is no assistant turn; --to=prompt needs none")
        if answered + 1 < len(messages):
            changed("turns after the last answer left out")
        row |= {"messages": messages[: answered + 1]}
    return schema.validate(row)


def _filled(value: object, fill: Mapping[str, str]) -> object:
    """The value with the placeholders in its texts replaced."""

    def text(found: re.Match) -> str:
        if found[1] not in fill:
            advice = f"--fill {found[1]}=TEXT, or --fill '{found[1]}={found[0]}' to keep it"
            raise RowError(f"placeholder {found[0]} not filled: {advice}")
        return fill[found[1]]

    if isinstance(value, str):
        return PLACEHOLDER.sub(text, value)
    if isinstance(value, list):
        return [_filled(one, fill) for one in value]
    if isinstance(value, dict):
        return {name: _filled(one, fill) for name, one in value.items()}
    return value
