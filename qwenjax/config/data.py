"""What a run reads: a mixture of text sources, and files of conversations."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwenjax.config.overrides import check, one_of

INIT_FROM = "init_from"  # value of `Data.tokenizer`: the tokenizer of the checkpoint that the run starts from


@dataclass(frozen=True)
class Source:
    """One source of the data mixture: a directory of token shards, or text that is tokenised once.

    Everything after `weight` says how text is read.
    """

    text: str = ""  # a file, a folder, 'python-stdlib', 'tfds:NAME@SPLIT' or 'hf:OWNER/NAME@SPLIT'; see sources/
    shards: str = ""  # a directory written by `python -m qwenjax.data tokenize`
    weight: float = 1.0  # share of the training rows, relative to the other sources
    column: tuple[str, ...] = ("text",)  # fields of a record that form its document; absent and empty ones are skipped
    join: str = "\n\n"  # put between those fields, and between the records of a group
    group: str = ""  # consecutive records with one value of this field are one document, such as the pages of a book
    include: tuple[str, ...] = ()  # only files of a folder whose path inside it matches a pattern; * also matches /
    exclude: tuple[str, ...] = ()  # no files whose path matches a pattern
    limit: int = 0  # about so many bytes of text: a fixed sample, spread over the whole source; 0: everything

    def __post_init__(self):
        check(not (self.text and self.shards), "a source has either text or shards, not both")
        check(self.weight > 0, f"source weight {self.weight} must be positive; leave the source out instead")
        for name in ("column", "include", "exclude"):
            value = getattr(self, name)
            check(isinstance(value, tuple) and all(value), f"source {name}={value!r}: wanted a tuple of names")
        check(bool(self.column), "a source needs the name of at least one column")
        check(self.limit >= 0, f"source limit={self.limit} must not be negative; 0 reads all of it")
        check(not (self.shards and self.reading), f"{list(self.reading)} are about text, but the source has shards")

    @property
    def reading(self) -> dict[str, Any]:
        """The options of reading text that differ from their defaults; the shards depend on them and on the text."""
        options = [f for f in dataclasses.fields(self) if f.name not in ("text", "shards", "weight")]
        return {f.name: getattr(self, f.name) for f in options if getattr(self, f.name) != f.default}


@dataclass(frozen=True)
class Data:
    """What the model reads, in rows of `seq_len` tokens."""

    sources: tuple[Source, ...] = ()
    # 'qwen', a .tiktoken or .model file, 'train:SIZE' (sentencepiece BPE trained on the text), or INIT_FROM
    tokenizer: str = "qwen"
    seq_len: int = 2048
    batch_size: int = 2048  # sequences per step, over all devices; 2048 x 2048 = the report's 4M tokens
    document_mask: bool = False  # a document attends only to itself, not to others in its row; the report: False
    eval_tokens: int = 1 << 20  # held-out tokens that an evaluation reads, at most

    def __post_init__(self):
        check(self.seq_len > 1, f"data.seq_len={self.seq_len} must be at least 2")
        check(self.batch_size > 0 and self.eval_tokens > 0, "data.batch_size and data.eval_tokens must be positive")


@dataclass(frozen=True)
class ChatFile:
    """A file of the chat schema, as `python -m qwenjax.data convert` writes it (docs/data.md)."""

    path: str = ""
    weight: float = 1.0  # share of the examples, relative to the other files

    def __post_init__(self):
        check(self.weight > 0, f"weight {self.weight} of chat file {self.path!r} must be positive; or leave it out")


@dataclass(frozen=True)
class Chat:
    """What alignment reads: conversations (sft), preferences (reward, dpo) or prompts (ppo, grpo, reinforce)."""

    files: tuple[ChatFile, ...] = ()
    # tokens that carry loss: assistant (report §3.1.2) | finetune_py (the released script) | all_but_user_content
    loss_mask: str = "assistant"
    truncate: str = "turns"  # of a too long conversation: turns (drop the oldest) | end (cut the end) | leave_out
    packed: bool = True  # sft: several conversations share a row, each attends only to itself
    validation: float = 0.03  # share of the conversations held out

    def __post_init__(self):
        one_of("chat.loss_mask", self.loss_mask, ("assistant", "finetune_py", "all_but_user_content"))
        one_of("chat.truncate", self.truncate, ("turns", "end", "leave_out"))
        check(0 <= self.validation < 1, f"chat.validation={self.validation} must lie in [0, 1)")
