"""Sentencepiece vocabularies: those trained here, and those of other models.

Vocabularies trained here serve models too small for 152k embedding rows. Any text survives encode and decode unchanged:
no normalisation, no added or removed blanks, unknown characters as bytes. Pieces may join a word with the punctuation
and line ends around it, and indentation with the word after it, but never hold a blank after a non-blank, so that a
prompt that ends with a word is cut like the same words in training.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from qwenjax.common.processes import cores
from qwenjax.tokenizer.base import CONTROL, Tokenizer, replace_surrogates

BLANK = "▁"  # U+2581, which sentencepiece writes for a space; in a text it must be encoded as bytes
CHUNK = 4000  # characters that training counts as one 'sentence'
_SEGMENT = re.compile(f"{BLANK}|[^{BLANK}]{{200}} *[^ {BLANK}]*|[^{BLANK}]+")  # ends where a blank follows a non-blank
_WORDS_AND_BLANKS = re.compile(f"{BLANK}|[^{BLANK}]+")
_PROBE = "  two\n\n\tblanks  é 中文 😀 \x00 "


class SentencePieceModel(Tokenizer):
    """A sentencepiece .model with its own control tokens, of any project (Llama 1 and 2, Mistral).

    `decode` gives the text as the model sees it: most put a blank before it, some normalise it first.
    """

    file = "tokenizer.model"
    kind: ClassVar[str] = "sentencepiece"  # in the name

    def __init__(self, data: bytes, source: str = "the model"):
        self._engine = engine = load_engine(data, source)
        names = [engine.id_to_piece(i) for i in range(len(engine))]
        special = {name: i for i, name in enumerate(names) if engine.is_control(i)}
        pieces = [self._bytes_of(i, name) for i, name in enumerate(names)]
        prefix = [engine.bos_id()] if engine.bos_id() >= 0 else []
        super().__init__(data, f"{self.kind}-{len(names)}", pieces, special, prefix)

    def _bytes_of(self, index: int, piece: str) -> bytes:
        if self._engine.is_byte(index):
            return bytes([int(piece[3:5], 16)])  # written <0x41>
        if self._engine.is_unknown(index):
            return "\ufffd".encode()
        return piece.encode() if self._engine.is_control(index) else piece.replace(BLANK, " ").encode()

    def _normalize(self, text: str) -> str:
        return replace_surrogates(text)

    def _ordinary(self, text: str) -> list[int]:
        return self._engine.encode(text)

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text, on the threads of the engine."""
        return self._engine.encode([self._normalize(text) for text in texts], num_threads=threads or cores())


class SentencePiece(SentencePieceModel):
    """A sentencepiece .model made by `train`. Raises ValueError if another lacks the control tokens or changes text."""

    kind = "spm"

    def __init__(self, data: bytes, source: str = "the model"):
        super().__init__(data, source)
        advice = "use one made by python -m qwenjax.tokenizer train"
        if missing := [surface for surface in CONTROL if surface not in self.special]:
            raise ValueError(f"{source} lacks the control tokens {', '.join(missing)}; {advice}")
        self.prefix = ()
        # If no piece holds a blank after a non-blank, text can be cut there without changing its ids. Short segments
        # are faster (the engine's queue of merges stays in cache) and keep all threads busy.
        crosses_blanks = any(re.search(rb"[^ ] ", piece) for piece in self._pieces)
        self._segment = _WORDS_AND_BLANKS if crosses_blanks else _SEGMENT
        self._blank_ids = [self._engine.piece_to_id(f"<0x{byte:02X}>") for byte in BLANK.encode()]
        if self.decode(self.encode_ordinary(_PROBE)) != _PROBE:
            raise ValueError(f"{source} changes text (normalisation, blanks or no byte fallback); {advice}")

    def _ordinary(self, text: str) -> list[int]:
        return self._encode_segments([text], 1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text, all of their segments on the threads of the engine."""
        return self._encode_segments([self._normalize(text) for text in texts], threads or cores())

    def _encode_segments(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        segments = [self._segment.findall(text) for text in texts]
        flat = list(itertools.chain.from_iterable(segments))
        if threads == 1:  # even with one thread the engine's batches start one: 15 times as slow for a short text
            encoded = map(self._engine.encode, flat)
        else:
            encoded = self._engine.encode(flat, num_threads=threads)
        ids = (self._blank_ids if segment == BLANK else own for segment, own in zip(flat, encoded))
        return [list(itertools.chain.from_iterable(itertools.islice(ids, len(own)))) for own in segments]


def read_model(data: bytes, source: str) -> SentencePieceModel:
    """The tokenizer of a .model file, made by `train` or of another project."""
    try:
        return SentencePiece(data, source)
    except ValueError:  # not trained here
        return SentencePieceModel(data, source)


def load_engine(data: bytes, source: str):
    """The sentencepiece processor of a model; `source` names it in errors."""
    from sentencepiece import SentencePieceProcessor

    try:
        if not data:
            raise RuntimeError("it is empty")  # the engine would take it for a model without pieces
        return SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(f"{source} is not a sentencepiece model: {str(error).splitlines()[0]}") from None


def train(
    texts: Iterable[str], size: int, path: str | Path, sample: int = 16_000_000, kind: str = "bpe"
) -> SentencePiece:
    """Trains a vocabulary, writes it to a .model file and returns it. The same texts give the same file.

    Args:
      texts: documents, read once. size: number of ids, with <unk>, three control tokens and 256 bytes.
      sample: maximum characters used; of longer input, chunks evenly spread over it.
      kind: 'bpe' merges the most frequent pairs; 'unigram' prunes a large vocabulary to the likeliest cuts.
    Raises:
      ValueError: no text, a path that does not end in .model, or a size too small or too large for the text.
    """
    import sentencepiece

    path = Path(path)
    if path.suffix != ".model":
        raise ValueError(f"{path}: wanted a path that ends in .model, by which load_tokenizer knows sentencepiece")
    chunks = _sample(texts, sample)
    if not chunks:
        raise ValueError("there is no text to train a vocabulary on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            character_coverage=_coverage(chunks, size),
            required_chars=BLANK,  # else a text without any space would spell it as U+2581
            byte_fallback=True,
            split_digits=True,  # each digit its own token, as in the Qwen vocabulary
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_by_unicode_script=False,  # else "(self" is cut into "(" and "self": 10% more tokens on code
            max_sentencepiece_length=48,  # room for deep indentation
            max_sentence_length=4 * CHUNK,  # bytes; longer ones would be dropped
            control_symbols=list(CONTROL),
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=2,  # fixed: the number is stored in the model and would change the fingerprint
            minloglevel=2,
        )
    except RuntimeError as error:
        total = sum(map(len, chunks))
        raise ValueError(f"no vocabulary of {size} ids from {total:,} characters: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return SentencePiece(model.getvalue(), source=str(path))


def _sample(texts: Iterable[str], limit: int) -> list[str]:
    """Chunks of the texts: every 2^k-th, with the smallest k that keeps at most `limit` characters."""
    kept: list[str] = []
    total, stride, index = 0, 1, 0
    for text in texts:
        # sentencepiece drops a whole sentence for one U+2585, its mark for unknowns, and reads U+2581 as a space
        text = replace_surrogates(text).replace("\u2585", "\n").replace(BLANK, "\n")
        for start in range(0, len(text), CHUNK):
            if index % stride == 0:
                kept.append(text[start : start + CHUNK])
                total += len(kept[-1])
            index += 1
            if total > limit and len(kept) > 1:
                kept, stride = kept[::2], 2 * stride
                total = sum(map(len, kept))
    return kept


def _coverage(chunks: list[str], size: int) -> float:
    """Share of the text whose characters become pieces: 99.95%, unless these would take over half of the vocabulary."""
    counts = Counter(itertools.chain.from_iterable(chunks))
    most = [count for _, count in counts.most_common(max((size - 260) // 2, 1))]
    return max(0.98, min(0.9995, sum(most) / counts.total()))  # sentencepiece accepts no less than 0.98
