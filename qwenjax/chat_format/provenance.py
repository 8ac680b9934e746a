"""Text that knows which of its characters came from messages and which the chat template generates.

A chat template writes control tokens around the texts of messages. Once both are one string, `<|im_end|>` of the
template and `<|im_end|>` typed by a user look the same. `Text` keeps one byte per character beside the string, so that
after any rendering only characters of the template can become control tokens.

Operations whose result cannot be followed character by character mark their whole result as message text: the fault is
then a control token that stays plain text, never one that a message forges.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from markupsafe import Markup

MESSAGE, GENERATED = 1, 2  # bits: from a message; inside a `{% generation %}` block


class Text(str):
    """A string with the origin of each character. Behaves as the plain string does, in templates too.

    Attributes:
      _marks: one byte per character, of the bits `MESSAGE` and `GENERATED`. The underscore hides it from templates.
    """

    _marks: bytes

    def __new__(cls, text: str, marks: bytes | int = MESSAGE):
        self = super().__new__(cls, text)
        self._marks = bytes([marks]) * len(text) if isinstance(marks, int) else marks
        return self

    def __str__(self):
        return self

    def __getitem__(self, index):
        part = str.__getitem__(self, index)
        return Text(part, self._marks[index] if isinstance(index, slice) else self._marks[index : index + 1 or None])

    def __iter__(self):
        return (Text(character, mark) for character, mark in zip(str.__iter__(self), self._marks, strict=True))

    def __add__(self, other):
        return join("", (self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other):
        return join("", (other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times):
        return join("", [self] * times)

    __rmul__ = __mul__

    def __mod__(self, values):
        return Text(str.__mod__(self, values))

    def __rmod__(self, template):
        return Text(str.__mod__(template, self))

    def strip(self, chars=None):
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars=None):
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars=None):
        return self[: len(str.rstrip(self, chars))]

    def split(self, sep=None, maxsplit=-1):
        return self._cut(str.split(self, sep, maxsplit))

    def rsplit(self, sep=None, maxsplit=-1):
        return self._cut(str.rsplit(self, sep, maxsplit))

    def splitlines(self, keepends=False):
        return self._cut(str.splitlines(self, keepends))

    def partition(self, sep):
        return tuple(self._cut(str.partition(self, sep)))

    def rpartition(self, sep):
        return tuple(self._cut(str.rpartition(self, sep)))

    def replace(self, old, new, count=-1):
        pieces = self.split(old, count) if old else [self]
        return join(new, pieces) if old else Text(str.replace(self, old, new, count))

    def join(self, parts):
        return join(self, parts)

    def _cut(self, parts: Iterable[str]) -> list["Text"]:
        """Consecutive parts of the string, as `str.split` returns them, with their marks."""
        begin, cut = 0, []
        for part in parts:
            begin = str.index(self, part, begin)
            cut.append(self[begin : begin + len(part)])
            begin += len(part)
        return cut


class MessageMarkup(Markup):
    """HTML-escaped text of a message: every character counts as the message's. Its own operations return this class."""


def _same_length(name: str):
    """A method of str that changes characters in place; where it changes the length, origins are lost."""

    def method(self, *args):
        changed = getattr(str, name)(self, *args)
        return Text(changed, self._marks if len(changed) == len(self) else MESSAGE)

    return method


for _name in ("lower", "upper", "title", "capitalize", "swapcase", "casefold"):
    setattr(Text, _name, _same_length(_name))


def marks(text: str) -> bytes:
    """The origin of each character: of plain strings, the template."""
    if isinstance(text, MessageMarkup):
        return bytes([MESSAGE]) * len(text)
    return text._marks if isinstance(text, Text) else bytes(len(text))


def join(separator: str, parts: Iterable[Any]) -> Text:
    """`separator.join(parts)` with origins."""
    parts = list(parts)
    text = str.join(separator, parts)  # raises what str raises
    return Text(text, marks(separator).join(map(marks, parts)))


def generated(text: str) -> Text:
    """The text of a `{% generation %}` block."""
    return Text(text, bytes(mark | GENERATED for mark in marks(text)))


def of_messages(value: Any) -> Any:
    """A JSON value in which every string is text of messages. Tuples stay; other objects become `<typename>`."""
    if isinstance(value, dict):
        return {of_messages(key) if isinstance(key, str) else key: of_messages(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(of_messages, value))
    if isinstance(value, str):
        return value if isinstance(value, Text) else Text(value)
    return value if value is None or isinstance(value, (bool, int, float)) else Text(f"<{type(value).__name__}>")


def holds_message(value: Any) -> bool:
    """Whether any string within a value is text of messages."""
    if isinstance(value, str):
        return any(mark & MESSAGE for mark in marks(value))
    if isinstance(value, dict):
        return any(holds_message(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(holds_message, value))
    return not (value is None or isinstance(value, (bool, int, float)))  # what cannot be looked into may hold some


def control_pieces(text: str, surfaces: re.Pattern) -> Iterator[tuple[str, int, int, bool]]:
    """Cuts rendered text at the control tokens that the template wrote: (surface or text, begin, end, is it a token).

    `surfaces` matches a control token: its surface is the group that matched, the rest are blanks that the token takes
    with it. A surface of which any character came from a message is plain text.
    """
    origin, begin, at = marks(text), 0, 0
    while match := surfaces.search(text, at):
        surface, (first, last) = match[match.lastindex], match.span(match.lastindex)
        if any(mark & MESSAGE for mark in origin[first:last]):
            at = first + 1
            continue
        if begin < match.start():
            yield str.__getitem__(text, slice(begin, match.start())), begin, match.start(), False
        yield surface, match.start(), match.end(), True
        begin = at = match.end()
    if begin < len(text):
        yield str.__getitem__(text, slice(begin, None)), begin, len(text), False
