"""A Qwen vocabulary with extra tokens after its control tokens, as `qwenjax.tokenizer extend` learns them (spec §2.4).

Nothing that exists moves: ranks keep their ids, control tokens keep theirs, and extra tokens, whose ids begin behind
them (151,851 for the published vocabulary), merge last.
"""

import operator
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from qwenjax.common import storage
from qwenjax.tokenizer.base import Tokenizer
from qwenjax.tokenizer.bpe import PATTERN, QwenBPE, write_ranks
from qwenjax.tokenizer.vocabulary.merges import read_extra

ROWS = 1 << 24  # more than any embedding has; an id beyond is a mistake


class ExtendedBPE(QwenBPE):
    """A .tiktoken vocabulary, the 208 control tokens, and the tokens of an extra .tiktoken file at the ids given there.

    Attributes:
      extra: the added tokens and their ids.
      skipped: extra tokens left out as the released loader does, as (token, id, why): the token or the id exists.
    """

    extra_file: ClassVar[str] = "extra.tiktoken"  # what `save` writes beside `file`

    def __init__(
        self, data: bytes, extra: bytes, source: str = "the vocabulary", extra_source: str = "the extra vocabulary"
    ):
        """From the bytes of both files; the sources name them in errors.

        Raises:
          ValueError: as `QwenBPE`; or a line of the extra file that is no token and id.
        """
        import tiktoken

        super().__init__(data, source)
        ranks = {token: rank for rank, token in enumerate(self._pieces[: self.eot])}
        first, added, taken = self.size, {}, set()
        self.extra: dict[bytes, int] = added
        self.skipped: list[tuple[bytes, int, str]] = []
        for token, index in read_extra(extra, extra_source):
            if token in ranks or token in added:
                self.skipped.append((token, index, f"the token exists, with id {(ranks | added)[token]}"))
            elif index < first or index in taken:
                self.skipped.append((token, index, "the id is in use"))
            elif index >= ROWS:
                raise ValueError(f"{extra_source}: id {index} of token {token!r} is beyond any embedding")
            else:
                added[token] = index
                taken.add(index)
        if self.skipped:
            token, index, why = self.skipped[0]
            warnings.warn(
                f"{extra_source}: {len(self.skipped)} of {len(self.skipped) + len(added)} extra tokens are left out; "
                f"the first is {token!r} with id {index}: {why}",
                stacklevel=2,
            )
        pieces = self._pieces + [b""] * (max(taken, default=first - 1) + 1 - first)
        for token, index in added.items():
            pieces[index] = token
        self._files = (self._vocabulary, write_ranks(added))
        self._unused = frozenset(range(first, len(pieces))) - taken
        Tokenizer.__init__(self, b"".join(self._files), f"{self.name}+{len(added)}", pieces, self.special)
        self._engine = tiktoken.Encoding(
            self.name, pat_str=PATTERN, mergeable_ranks=ranks | added, special_tokens=self.special
        )

    def __reduce__(self):
        return type(self), self._files

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """As `Tokenizer.decode_bytes`; ids in a gap between extra tokens stand for nothing and are refused."""
        ids = list(map(operator.index, ids))
        if bad := self._unused.intersection(ids):
            raise ValueError(f"id {min(bad)} is not in use: the extra tokens of {self.name} leave gaps")
        return super().decode_bytes(ids)

    def save(self, directory: str | Path) -> Path:
        """Writes both vocabulary files into the directory; `load_tokenizer(directory)` reads them."""
        path = storage.path(directory) / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, data in zip((self.file, self.extra_file), self._files):
            (path.parent / name).write_bytes(data)
        return path
