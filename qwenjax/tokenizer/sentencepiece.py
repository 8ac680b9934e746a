"""Vocabularies of our own: sentencepiece with byte fallback, for models too small for 152k embedding rows.

Any text survives encode and decode unchanged: no normalisation, no added or removed blanks, unknown characters as
bytes. Pieces may join a word with the punctuation and line ends around it ("):\\n", "▁self,"), and indentation with
the word after it, but never hold a blank after a non-blank: a prompt that ends with a word is cut like the same words
in training. Dropping that last rule saves another tenth of the tokens on Python source, at the price of such prompts.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from qwenjax.common.processes import cores
from qwenjax.tokenizer.base import CONTROL, Tokenizer, whole_text

BLANK = "▁"  # U+2581, by which sentencepiece writes a space; in text it has to go in as bytes
CHUNK = 4000  # characters that training counts as one 'sentence'
_SEGMENT = re.compile(f"{BLANK}|[^{BLANK}]{{200}} *[^ {BLANK}]*|[^{BLANK}]+")  # ends where a blank follows a non-blank
_WHOLE = re.compile(f"{BLANK}|[^{BLANK}]+")
_PROBE = "  two\n\n\tblanks  é 中文 😀 \x00 "


class SentencePiece(Tokenizer):
    """A sentencepiece .model made by `train`; its control tokens are those of ChatML."""

    file = "tokenizer.model"

    def __init__(self, data: bytes, source: str = "the model"):
        """From the bytes of a .model file; `source` names it in errors.

        Raises:
          ValueError: no sentencepiece model, one without the control tokens, or one that does not keep text as it is.
        """
        from sentencepiece import SentencePieceProcessor

        try:
            self._engine = SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(f"{source} is not a sentencepiece model: {error}") from None
        ids = range(len(self._engine))
        names = [self._engine.id_to_piece(i) for i in ids]
        special = {names[i]: i for i in ids if self._engine.is_control(i)}
        missing = [surface for surface in CONTROL if surface not in special]
        if missing:
            raise ValueError(f"{source} lacks the control tokens {', '.join(missing)}; make one with spm.train")
        super().__init__(data, f"spm-{len(ids)}", [self._bytes_of(i, name) for i, name in enumerate(names)], special)
        # Where no piece holds a blank after a non-blank, text can be cut there without changing its ids. Short
        # segments are quicker (the engine's queue of merges stays in cache) and keep all threads busy.
        self._segment = _WHOLE if any(re.search(rb"[^ ] ", piece) for piece in self._pieces) else _SEGMENT
        self._blank_ids = [self._engine.piece_to_id(f"<0x{byte:02X}>") for byte in BLANK.encode()]
        if self.decode(self.encode_ordinary(_PROBE)) != _PROBE:
            raise ValueError(f"{source} changes text (normalisation, blanks or no byte fallback); use one of spm.train")

    def _bytes_of(self, index: int, name: str) -> bytes:
        if self._engine.is_byte(index):
            return bytes([int(name[3:5], 16)])  # written <0x41>
        if self._engine.is_unknown(index):
            return "\ufffd".encode()  # byte fallback leaves it without use
        return name.replace(BLANK, " ").encode()

    def _normalize(self, text: str) -> str:
        return whole_text(text)

    def _ordinary(self, text: str) -> list[int]:
        return self._join([text], 1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text, all of their segments on the threads of the engine."""
        return self._join([self._normalize(text) for text in texts], threads or cores())

    def _join(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Ids of the texts, segment by segment."""
        segments = [self._segment.findall(text) for text in texts]
        flat = list(itertools.chain.from_iterable(segments))
        if threads == 1:  # the engine's batches start a thread even so: 15 times as long as a short text takes
            encoded = map(self._engine.encode, flat)
        else:
            encoded = self._engine.encode(flat, num_threads=threads)
        ids = (self._blank_ids if segment == BLANK else own for segment, own in zip(flat, encoded))
        return [list(itertools.chain.from_iterable(itertools.islice(ids, len(own)))) for own in segments]


def train(
    texts: Iterable[str], size: int, path: str | Path, sample: int = 16_000_000, kind: str = "bpe"
) -> SentencePiece:
    """Trains a vocabulary, writes it to a .model file and returns it; the same texts give the same file.

    10 MB of Python source and 8,192 ids take two seconds on two cores.

    Args:
      texts: documents, read once.
      size: number of ids in all: <unk>, three control tokens, 256 bytes, and pieces.
      path: the .model file to write.
      sample: characters used at most; of longer input, chunks evenly spread over it.
      kind: 'bpe' merges the most frequent pairs; 'unigram' prunes a large vocabulary to the likeliest cuts.
    Raises:
      ValueError: no text, a path that is no .model, or a size that is too small or too large for the text.
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
            required_chars=BLANK,  # in text without a single space it would be spelled as U+2581
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
            num_threads=2,  # not the machine's: the number is stored in the model and would change the fingerprint
            minloglevel=2,
        )
    except RuntimeError as error:
        total = sum(map(len, chunks))
        raise ValueError(f"no vocabulary of {size} ids from {total:,} characters: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return SentencePiece(model.getvalue(), source=str(path))


def _sample(texts: Iterable[str], limit: int) -> list[str]:
    """Chunks of the texts, every 2^k-th of them with the k that keeps at most `limit` characters."""
    kept: list[str] = []
    total, stride, index = 0, 1, 0
    for text in texts:
        # sentencepiece drops a whole sentence for one U+2585, its mark for unknowns, and reads U+2581 as a space
        text = whole_text(text).replace("\u2585", "\n").replace(BLANK, "\n")
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
    """Share of the text whose characters become pieces; the rest are spelled as bytes.

    99.95% unless that alone would take more than half of the vocabulary, as it would with 8k ids for Chinese.
    """
    counts = Counter()
    for chunk in chunks:
        counts.update(chunk)
    most = [count for _, count in counts.most_common(max((size - 260) // 2, 1))]
    return max(0.98, min(0.9995, sum(most) / counts.total()))  # 0.98 is the least that sentencepiece accepts
