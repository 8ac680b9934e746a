"""The Qwen tokenizer: byte-level BPE over a file of ranks (report §2.2), computed by tiktoken.

Three things differ from the cl100k_base it starts from: text is brought to Unicode NFC first, every digit is a token of
its own, and 208 control tokens follow the ranks, at fixed ids from 151,643 for the published vocabulary. `ExtendedBPE`
adds tokens after these (docs/report.md, Vocabulary expansion), so that no existing id moves; they merge last.
"""

import base64
import binascii
import functools
import hashlib
import operator
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import AnyStr

import numpy as np

from qwenjax.common.processes import cores
from qwenjax.tokenizer.base import CONTROL, EXTRA, Tokenizer

# How text is split before merging (docs/report.md, Text splitting): contractions, words with at most one leading sign,
# single digits, punctuation with the line ends after it, line ends, and blanks, of which the last stays with the next
# word.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (*CONTROL, *(f"<|extra_{i}|>" for i in range(205)))
PUBLISHED = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"  # SHA-256 of the released ranks
MAX_EMBEDDING_ROWS = 1 << 24  # more than any embedding has; a larger id is a mistake
# tiktoken's regular expressions overflow the stack on more than 999,998 blanks in a row (found by bisection, 0.14) and
# crash the process. Such runs are cut; all text without one has the released ids.
LONG = 999_998
_LONG_BLANKS = re.compile(rf"(?<![^\S\r\n])[^\S\r\n]{{{LONG + 1},}}")  # tried at the start of a run only: linear time

# quicktok (extra `fast`) also has the published vocabulary and is two to four times as fast. tiktoken remains the
# reference: quicktok is used only in the version that tests/tokenizer/test_exactness.py has compared on a million
# strings, and only for text whose characters both are known to treat alike. Excluded are the long s, which tiktoken
# reads as an s in contractions, lone surrogates, and the blocks of letters, digits and combining marks newer than
# Unicode 14, the oldest version that Python, tiktoken or quicktok builds on.
QUICKTOK = "0.4.0"
_ALIKE = re.compile(
    "[\0-\u017e\u0180-\u088e\u0890-\u0896\u0898-\u0c5b\u0c5d-\u0cdb\u0cdd-\u1c88\u1c8b-\ua7ca\ua7dd-\ua7f0\ua7f2-\ud7ff"
    "\ue000-\U000105bf\U0001d400-\U0001df24\U0001e700-\U0002b738\U0002b740-\U0002cea1\U0002ceae-\U0002ebef"
    "\U0002ee5e-\U0003134f\U00033480-\U0010ffff]*+"
)
# Compared at the first use of quicktok, because another build, or another tiktoken, might differ.
_PROBES = (
    "It's SHE'LL we'Ve o'clock 'tis 's ''s\n\n\tif x[0] != 3.14159:  # 100%\r\n   return 'ok'  \n \n",
    "天地玄黄，宇宙洪荒。１２３ Ⅷ ½ ٤٢ हिन्दी ภาษาไทย 한국어 ümlaut 👩\u200d👧🏽\u3000\xa0\u2003 x\u0301 <|endoftext|>",
)


class QwenBPE(Tokenizer):
    """A .tiktoken vocabulary with the 208 control tokens of Qwen after its ranks.

    Attributes:
      ranks: token -> id of all tokens but the control tokens, in the order in which they merge.
    """

    file = "qwen.tiktoken"

    def __init__(self, data: bytes, source: str = "the vocabulary"):
        import tiktoken

        published = hashlib.sha256(data).hexdigest() == PUBLISHED  # needs no checks, which take 0.4 s
        if published:
            ranks = {token: rank for rank, token in enumerate(map(binascii.a2b_base64, data.split()[::2]))}
        else:
            ranks = read_ranks(data, source)
        special = {surface: len(ranks) + i for i, surface in enumerate(SPECIAL)}
        pieces = [*ranks, *(surface.encode() for surface in SPECIAL)]
        super().__init__(data if published else write_ranks(ranks), f"bpe-{len(pieces)}", pieces, special)
        if self.fingerprint == PUBLISHED:
            self.name = "qwen"
        self.ranks = ranks
        self._engine = tiktoken.Encoding(self.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)

    def _ordinary(self, text: str) -> list[int]:
        return [i for part in _parts(text) for i in self._engine.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text; threads help, because tiktoken releases the interpreter lock."""
        texts = [self._normalize(text) for text in texts]
        if any(len(text) >= LONG for text in texts):
            return [self._ordinary(text) for text in texts]
        return self._engine.encode_ordinary_batch(texts, num_threads=threads or cores())

    def encode_array(self, text: str) -> np.ndarray:
        """As `Tokenizer.encode_array`; the first call loads quicktok if it is installed, which takes half a second."""
        return np.concatenate([self._array(part) for part in _parts(self._normalize(text))])

    def _array(self, text: str) -> np.ndarray:
        if self.quicktok and (text.isascii() or _ALIKE.fullmatch(text)):
            return self.quicktok(text)
        try:
            return self._engine.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates, which `encode_ordinary` replaces
            return np.array(self._engine.encode_ordinary(text), np.uint32)

    @functools.cached_property
    def quicktok(self) -> Callable[[str], np.ndarray] | None:
        """quicktok's encoder of normalised text; None if it is absent, untested, or this is another vocabulary."""
        if self.fingerprint != PUBLISHED:
            return None
        try:
            import quicktok
        except ImportError:
            return None
        if quicktok.__version__ != QUICKTOK:
            warnings.warn(f"quicktok {quicktok.__version__} is not used; only {QUICKTOK} is tested", stacklevel=2)
            return None
        engine = quicktok.get_encoding("qwen3")
        if any(engine.encode_ordinary(probe) != self._ordinary(probe) for probe in map(self._normalize, _PROBES)):
            warnings.warn("quicktok is not used: its ids differ from those of tiktoken here", stacklevel=2)
            return None
        return lambda text: engine.encode_batch([text], 1)[0]


class ExtendedBPE(QwenBPE):
    """A .tiktoken vocabulary, the 208 control tokens, and the tokens of an extra .tiktoken file at the ids given there.

    Attributes:
      extra: token -> id of these.
      skipped: (token, id, why) of those left out, as in the released loader, because the token or the id exists.
    """

    def __init__(
        self, data: bytes, extra: bytes, source: str = "the vocabulary", extra_source: str = "the extra vocabulary"
    ):
        import tiktoken

        super().__init__(data, source)
        used = set(range(self.size))
        self.extra: dict[bytes, int] = {}
        self.skipped: list[tuple[bytes, int, str]] = []
        for token, index in read_extra(extra, extra_source):
            if token in self.ranks or token in self.extra:
                self.skipped.append((token, index, f"the token exists, with id {(self.ranks | self.extra)[token]}"))
            elif index in used:
                self.skipped.append((token, index, "the id is in use"))
            elif index >= MAX_EMBEDDING_ROWS:
                raise ValueError(f"{extra_source}: id {index} of token {token!r} is larger than any embedding")
            else:
                self.extra[token] = index
                used.add(index)
        if self.skipped:
            token, index, why = self.skipped[0]
            warnings.warn(
                f"{extra_source}: {len(self.skipped)} of {len(self.skipped) + len(self.extra)} extra tokens are left "
                f"out; the first is {token!r} with id {index}: {why}",
                stacklevel=2,
            )
        pieces = self._pieces + [b""] * (max(used) + 1 - self.size)
        for token, index in self.extra.items():
            pieces[index] = token
        files = {**self._files, EXTRA: write_ranks(self.extra)}
        self._unused = frozenset(range(len(pieces))) - used
        Tokenizer.__init__(self, b"".join(files.values()), f"{self.name}+{len(self.extra)}", pieces, self.special)
        self._files = files
        self.ranks = self.ranks | self.extra
        self._engine = tiktoken.Encoding(
            self.name, pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens=self.special
        )

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """As `Tokenizer.decode_bytes`; also refuses ids in a gap between extra tokens."""
        ids = list(map(operator.index, ids))
        if bad := self._unused.intersection(ids):
            raise ValueError(f"id {min(bad)} is not in use: the extra tokens of {self.name} leave gaps")
        return super().decode_bytes(ids)


def _parts(text: str) -> list[str]:
    """The text, cut at runs of blanks that are too long, and within them."""
    if len(text) < LONG:
        return [text]
    runs = (run.span() for run in _LONG_BLANKS.finditer(text))
    cuts = [0, *(cut for start, stop in runs for cut in range(start, stop, LONG)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


# ---- .tiktoken files ----


def _lines(data: bytes, source: str, number_name: str) -> Iterator[tuple[str, bytes, int]]:
    """(where, token, number) of each line: a base64 token, a blank and a number. Blank lines are skipped."""
    for number, line in enumerate(data.splitlines(), start=1):
        if fields := line.split():
            where = f"{source}, line {number}"
            if len(fields) != 2 or not fields[1].isdigit():
                raise ValueError(f"{where}: wanted a base64 token and {number_name}, got {line[:60]!r}")
            try:
                token = base64.b64decode(fields[0], validate=True)
            except binascii.Error as error:
                raise ValueError(f"{where}: {fields[0][:60]!r} is not base64 ({error})") from None
            yield where, token, int(fields[1])


def read_ranks(data: bytes, source: str = "the vocabulary") -> dict[bytes, int]:
    """Token -> rank of a .tiktoken file, in order of rank.

    A line is the token in base64, a blank, and its rank, which counts up from 0.

    Raises:
      ValueError: naming the line, if a token is not base64 or occurs twice, or a rank is not the next one; or if one of
        the 256 bytes is not a token, because then some text could not be encoded.
    """
    ranks: dict[bytes, int] = {}
    for where, token, rank in _lines(data, source, "a rank"):
        if rank != len(ranks):
            raise ValueError(f"{where}: rank {rank} where {len(ranks)} was due; ranks count up without gaps")
        if token in ranks:
            raise ValueError(f"{where}: token {token!r} already has rank {ranks[token]}")
        ranks[token] = len(ranks)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{source}: {len(missing)} of the 256 bytes are not tokens, the first is 0x{missing[0]:02x}")
    return ranks


def read_extra(data: bytes, source: str = "the extra vocabulary") -> list[tuple[bytes, int]]:
    """(token, id) of a .tiktoken file whose ids may begin anywhere and have gaps, in order of id."""
    pairs = [(token, index) for _, token, index in _lines(data, source, "its id")]
    return sorted(pairs, key=lambda pair: pair[1])


def write_ranks(ranks: dict[bytes, int]) -> bytes:
    """The .tiktoken file of the ranks, in its one canonical form: the fingerprint is the hash of this."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())


# ---- bytes ----


def byte_order() -> list[bytes]:
    """The 256 bytes as Qwen's (and GPT-2's) vocabulary orders them: printable first (docs/report.md, Vocabulary)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [bytes([byte]) for byte in (*printable, *sorted(set(range(256)) - set(printable)))]


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's table from a byte to its character in files: a printable one is itself, others come from U+0100 on."""
    return {byte[0]: chr(byte[0]) if i < 188 else chr(256 + i - 188) for i, byte in enumerate(byte_order())}


def spell(token: bytes) -> str:
    """A token as the files of GPT-2 write it: printable bytes as themselves, others as characters from U+0100 on."""
    return "".join(map(bytes_to_unicode().__getitem__, token))


def merges(ranks: dict[AnyStr, int]) -> list[tuple[AnyStr, AnyStr]]:
    """For each token of several bytes (or characters), in order of rank, the two tokens that merge into it.

    They are what remains of it after all merges of lower rank. ValueError: a token that no merges lead to.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            lowest = min(joined)
            if lowest >= rank:
                raise ValueError(f"token {token!r} (rank {rank}) is not made by merging two others")
            at = joined.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs
