"""The Qwen tokenizer: byte-level BPE over a file of ranks (report §2.2), computed by tiktoken.

Three things differ from the cl100k_base it starts from: text is brought to Unicode NFC first, every digit is a piece
of its own, and 208 control tokens follow the ranks, at fixed ids from 151,643 for the published vocabulary.
"""

import base64
import binascii
import hashlib
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from qwenjax.common.processes import cores
from qwenjax.tokenizer.base import CONTROL, Tokenizer

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
_LONG_BLANKS = re.compile(rf"(?<![^\S\r\n])[^\S\r\n]{{{LONG + 1},}}")  # tried at the start of a run only: linear time

# quicktok (extra `fast`) has the published vocabulary, too, and is two to four times as quick. The tokenizer of record
# is tiktoken: quicktok encodes only in the version that tests/tokenizer/test_exactness.py has compared on a million
# strings, and only text of characters that both are known to treat alike. These are all but the long s, which tiktoken
# takes for an s in contractions, lone surrogates, and, in whole blocks, the letters, digits and combining marks that
# came
# after Unicode 14, the oldest version that Python, tiktoken or quicktok builds on.
QUICKTOK = "0.4.0"
_ALIKE = re.compile(
    "[\0-\u017e\u0180-\u088e\u0890-\u0896\u0898-\u0c5b\u0c5d-\u0cdb\u0cdd-\u1c88\u1c8b-\ua7ca\ua7dd-\ua7f0\ua7f2-\ud7ff"
    "\ue000-\U000105bf\U0001d400-\U0001df24\U0001e700-\U0002b738\U0002b740-\U0002cea1\U0002ceae-\U0002ebef"
    "\U0002ee5e-\U0003134f\U00033480-\U0010ffff]*+"
)
# What quicktok must get right before it is used: another build, or another tiktoken, might not.
_PROBES = (
    "It's SHE'LL we'Ve o'clock 'tis 's ''s\n\n\tif x[0] != 3.14159:  # 100%\r\n   return 'ok'  \n \n",
    "天地玄黄，宇宙洪荒。１２３ Ⅷ ½ ٤٢ हिन्दी ภาษาไทย 한국어 ümlaut 👩\u200d👧🏽\u3000\xa0\u2003 x\u0301 <|endoftext|>",
)


class QwenBPE(Tokenizer):
    """A .tiktoken vocabulary with the 208 control tokens of Qwen after its ranks."""

    file = "qwen.tiktoken"

    def __init__(self, data: bytes, source: str = "the vocabulary"):
        """From the bytes of a .tiktoken file; `source` names it in errors."""
        import tiktoken

        published = hashlib.sha256(data).hexdigest() == PUBLISHED  # then it needs no checks, which take 0.4 s
        ranks = _ranks(data) if published else read_ranks(data, source)
        special = {surface: len(ranks) + i for i, surface in enumerate(SPECIAL)}
        pieces = [*ranks, *(surface.encode() for surface in SPECIAL)]
        super().__init__(data if published else write_ranks(ranks), f"bpe-{len(pieces)}", pieces, special)
        if self.fingerprint == PUBLISHED:
            self.name = "qwen"
        self._engine = tiktoken.Encoding(self.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)

    def _ordinary(self, text: str) -> list[int]:
        if len(text) < LONG:
            return self._engine.encode_ordinary(text)
        return [i for part in _parts(text) for i in self._engine.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text; threads help, since tiktoken works outside the interpreter lock."""
        texts = [self._normalize(text) for text in texts]
        if any(len(text) >= LONG for text in texts):
            return [self._ordinary(text) for text in texts]
        return self._engine.encode_ordinary_batch(texts, num_threads=threads or cores())

    def encode_array(self, text: str) -> np.ndarray:
        """The same ids as `encode_ordinary`, as uint32 [n]: the quickest way for much text.

        The first call looks for quicktok, which takes half a second to load.
        """
        text = self._normalize(text)
        if len(text) < LONG:
            return self._array(text)
        return np.concatenate([self._array(part) for part in _parts(text)])

    def _array(self, text: str) -> np.ndarray:
        if self.quick and (text.isascii() or _ALIKE.fullmatch(text)):
            return self.quick(text)
        try:
            return self._engine.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates, which `encode_ordinary` replaces
            return np.array(self._engine.encode_ordinary(text), np.uint32)

    @cached_property
    def quick(self) -> Callable[[str], np.ndarray] | None:
        """quicktok's encoder of normalised text; None if it is absent, not the tested one or of another vocabulary."""
        if self.fingerprint != PUBLISHED:
            return None
        try:
            import quicktok
        except ImportError:
            return None
        if quicktok.__version__ != QUICKTOK:
            warnings.warn(f"quicktok {quicktok.__version__} is not used, only {QUICKTOK} is tested", stacklevel=2)
            return None
        engine = quicktok.get_encoding("qwen3")
        if any(engine.encode_ordinary(probe) != self._ordinary(probe) for probe in map(self._normalize, _PROBES)):
            warnings.warn("quicktok is not used: it does not agree with tiktoken here", stacklevel=2)
            return None
        return lambda text: engine.encode_batch([text], 1)[0]


def _parts(text: str) -> list[str]:
    """The text, cut where and in runs of blanks that are too long."""
    runs = (run.span() for run in _LONG_BLANKS.finditer(text))
    cuts = [0, *(cut for start, stop in runs for cut in range(start, stop, LONG)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


def _ranks(data: bytes) -> dict[bytes, int]:
    """`read_ranks` of a file that is known to be good."""
    return {token: rank for rank, token in enumerate(map(binascii.a2b_base64, data.split()[::2]))}


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
