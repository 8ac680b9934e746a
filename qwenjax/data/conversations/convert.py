"""Chat data of known formats as rows of our schema, with a count of what became of every row."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwenjax.common.figures import aligned
from qwenjax.common.progress import meter
from qwenjax.data.conversations import docstrings, files, formats, schema
from qwenjax.data.conversations.formats import Exchange
from qwenjax.data.conversations.schema import RowError
from qwenjax.data.conversations.turns import NoteChange
from qwenjax.sources.documents import STDLIB
from qwenjax.sources.slices import Report

PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]\w*)\}\}")


@dataclass
class ConversionReport:
    """Counts of what became of the rows of one or more files."""

    read: int = 0
    written: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (file, format, kind) -> rows
    skipped: Report = field(default_factory=Report)
    changed: Report = field(default_factory=Report)

    @property
    def rows(self) -> int:
        """Rows written."""
        return self.written.total()

    def lines(self) -> list[str]:
        """A table of what was written, and what was changed, for people."""
        table = [("file", "format", "kind", "rows"), *((*key, f"{rows:,}") for key, rows in self.written.items())]
        return [*aligned(table, left=3), *self.changed.lines("changed")]


def convert_rows(
    path: str | Path,
    report: ConversionReport,
    format: str = "auto",
    to: str | None = None,
    strict: bool = False,
    fill: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda size: None,
) -> Iterator[tuple[str, str, schema.Row]]:
    """(origin, format, row of our schema) from a file, or from 'python-stdlib' (`docstrings`).

    Args:
      format: a key of `formats.FORMATS` that every row must have, or 'auto' to recognise each row's own.
      to: a kind (`schema.KINDS`). None: the format's own kind; for 'python-stdlib', conversation.
      strict: raise at the first row that cannot be converted.
      fill: texts for placeholders such as {{name}}; a row with any other placeholder is refused.
    Raises:
      ValueError: no such file or format, or (strict) a bad row: the message has file and line.
    """
    for name, value, known in (("format", format, ("auto", *formats.FORMATS)), ("to", to, (None, *schema.KINDS))):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(filter(None, known))}")
    source, objects = Path(path).name.split(".")[0], files.read_objects(path, report.skipped, strict, progress)
    if str(path) == STDLIB:
        objects, to = docstrings.rows(), to or "conversation"
    for origin, value in objects:
        report.read += 1
        changes: list[str] = []
        try:
            value = _filled(value, fill or {})
            name = formats.recognise(value, format)
            kind, _, read, _ = formats.FORMATS[name]
            rows = [_row(exchange, to or kind, source, changes.append) for exchange in read(value, changes.append)]
        except (RowError, RecursionError) as error:
            row_error = error if isinstance(error, RowError) else RowError("nested too deeply")
            files.skip_row(row_error, origin, report.skipped, strict)
            continue
        for reason in changes:
            report.changed.note(reason, origin)
        for row in rows:
            report.written[Path(path).name, name, schema.kind_of(row)] += 1
            yield origin, name, row


def convert(
    paths: Sequence[str | Path],
    out: str | Path,
    format: str = "auto",
    to: str | None = None,
    strict: bool = False,
    fill: Mapping[str, str] | None = None,
) -> ConversionReport:
    """Writes the rows of files as one file of our schema, of one kind; see `convert_rows` for the options.

    Raises:
      ValueError: as `convert_rows`; rows of several kinds without `to`; or no row at all. Then nothing is written.
    """
    report = ConversionReport()

    def rows() -> Iterator[schema.ChatRow]:
        first: tuple[str, str] | None = None
        for path in paths:
            for origin, name, row in convert_rows(path, report, format, to, strict, fill, step):
                kind = schema.kind_of(row)
                first = first or (kind, origin)
                if kind != first[0]:
                    advice = f"use --to={first[0]} or --to={kind}, or convert them separately"
                    raise ValueError(f"{origin} ({name}) is a {kind}, but {first[1]} a {first[0]}: {advice}")
                yield row
        if first is None:
            raise ValueError(f"no row could be converted: {'; '.join(report.skipped.lines()) or 'there is none'}")

    size = sum(files.unpacked_size(path) for path in paths)
    with meter("converting", size) as step:
        files.write_chat(out, rows())
    return report


def _row(exchange: Exchange, to: str, source: str, note_change: NoteChange) -> schema.ChatRow:
    """The exchange as a checked row of a kind."""
    row: dict = {"tools": exchange.tools, "id": exchange.id, "source": exchange.source or source, "meta": exchange.meta}
    if to == "preference":
        if len(exchange.responses) < 2:
            raise RowError("fewer than two responses", f"{len(exchange.responses)} responses; a preference needs two")
        row |= {"prompt": exchange.prompt, "responses": exchange.responses, "scores": exchange.scores}
    elif to == "prompt":
        answer = exchange.answer or (exchange.responses[0]["content"] if exchange.responses else None) or None
        row |= {"prompt": exchange.prompt, "answer": answer}
    else:
        messages = [*exchange.prompt, *exchange.responses[:1]]
        answered = max((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), default=-1)
        if answered < 0:
            raise RowError("no assistant turn", "there is no assistant turn; use --to=prompt, which needs none")
        if answered + 1 < len(messages):
            note_change("removed turns after the last answer")
        row |= {"messages": messages[: answered + 1]}
    return schema.validate(row)


def _filled(value: object, fill: Mapping[str, str]) -> object:
    """The value with the placeholders in its texts replaced."""

    def text(match: re.Match) -> str:
        if match[1] not in fill:
            advice = f"--fill {match[1]}=TEXT, or --fill '{match[1]}={match[0]}' to keep it"
            raise RowError(f"placeholder {match[0]} not filled: {advice}")
        return fill[match[1]]

    if isinstance(value, str):
        return PLACEHOLDER.sub(text, value)
    if isinstance(value, list):
        return [_filled(item, fill) for item in value]
    if isinstance(value, dict):
        return {name: _filled(one, fill) for name, one in value.items()}
    return value
