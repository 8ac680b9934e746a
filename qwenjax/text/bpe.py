"""The Qwen tokenizer: byte-level BPE over a file of ranks (report §2.2), computed by tiktoken.

Three things differ from the cl100k_base it starts from: text is brought to Unicode NFC first, every digit is a piece
of its own, and 208 control tokens follow the ranks, at fixed ids from 151,643 for the published vocabulary.
"""

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Sequence

from qwenjax.text.base import CONTROL, Tokenizer

# How text is cut before merging (spec §2.2): contractions, words with at most one leading sign, single digits,
# punctuation with the line ends after it, line ends, and blanks, of which the last stays with the next word.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (*CONTROL, *(f"<|extra_{i}|>" for i in range(205)))
PUBLISHED = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"  # SHA-256 of the released ranks
# tiktoken's regular expressions run out of stack in more than 999,998 blanks on end (found by bisection, 0.14), which
# takes the process down. Such runs are cut; the ids of any text without one are the released ones.
LONG = 999_998
_LONG_BLANKS = re.compile(rf"([^\S\r\n]{{{LONG}}})(?=[^\S\r\n])")


class QwenBPE(Tokenizer):
    """A .tiktoken vocabulary with the 208 control tokens of Qwen after its ranks."""

    file = "qwen.tiktoken"

    def __init__(self, data: bytes, source: str = "the vocabulary"):
        """From the bytes of a .tiktoken file; `source` names it in errors."""
        import tiktoken

        ranks = read_ranks(data, source)
        special = {surface: len(ranks) + i for i, surface in enumerate(SPECIAL)}
        pieces = [*ranks, *(surface.encode() for surface in SPECIAL)]
        super().__init__(write_ranks(ranks), f"bpe-{len(pieces)}", pieces, special)
        if self.fingerprint == PUBLISHED:
            self.name = "qwen"
        self._engine = tiktoken.Encoding(self.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)

    def _ordinary(self, text: str) -> list[int]:
        if len(text) < LONG:
            return self._engine.encode_ordinary(text)
        return [i for part in _LONG_BLANKS.split(text) for i in self._engine.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text; threads help, since tiktoken works outside the interpreter lock."""
        texts = [self._normalize(text) for text in texts]
        if any(len(text) >= LONG for text in texts):
            return [self._ordinary(text) for text in texts]
        return self._engine.encode_ordinary_batch(texts, num_threads=threads or os.cpu_count() or 1)


def read_ranks(data: bytes, source: str = "the vocabulary") -> dict[bytes, int]:
    """Token -> rank of a .tiktoken file, in order of rank.

    A line is the token in base64, a blank, and its rank, which counts up from 0. Blank lines are skipped and any line
    ends are accepted: some public copies of the published file have CRLF.

    Raises:
      ValueError: naming the line, if a token is no base64 or comes twice, or a rank is not the next one; or if one of
        the 256 bytes is no token, because then some text could not be encoded.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{source}, line {number}"
        if len(fields) != 2 or not fields[1].isdigit():
            raise ValueError(f"{where}: wanted a base64 token and a rank, got {line[:60]!r}")
        try:
            token = base64.b64decode(fields[0], validate=True)
        except binascii.Error as error:
            raise ValueError(f"{where}: {fields[0][:60]!r} is not base64 ({error})") from None
        if int(fields[1]) != len(ranks):
            raise ValueError(f"{where}: rank {int(fields[1])} where {len(ranks)} was due; ranks count up without gaps")
        if not token or token in ranks:
            first = f"already has rank {ranks[token]}" if token else "is empty"
            raise ValueError(f"{where}: token {token!r} {first}")
        ranks[token] = len(ranks)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{source}: {len(missing)} of the 256 bytes are no tokens, the first is 0x{missing[0]:02x}")
    return ranks


def write_ranks(ranks: dict[bytes, int]) -> bytes:
    """The .tiktoken file of the ranks, in its one canonical form: the fingerprint is the hash of this."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
