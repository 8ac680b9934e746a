"""What a run reads: text in rows of tokens, and dialogues."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwenjax.config.checks import check, one_of

INIT_FROM = "init_from"  # as `Data.tokenizer`: the one that lies with the model the run starts from


@dataclass(frozen=True)
class Source:
    """One member of the data mixture: a directory of token shards, or text from which they are made once.

    Everything after `weight` says how text is read.
    """

    text: str = ""  # a file, a folder, 'python-stdlib', 'tfds:NAME@SPLIT' or 'hf:OWNER/NAME@SPLIT'; see data.sources
    shards: str = ""  # a directory written by `python -m qwenjax.data tokenize`
    weight: float = 1.0  # share of the rows, relative to the other sources
    column: tuple[str, ...] = ("text",)  # fields of a row that make up its document; absent and empty ones are left out
    join: str = "\n\n"  # between those fields, and between the rows of a group
    group: str = ""  # consecutive rows with the same value in this field are one document: the pages of a book
    include: tuple[str, ...] = ()  # of a folder, only files whose path inside it fits one of these; * also crosses /
    exclude: tuple[str, ...] = ()  # and none whose path fits one of these
    limit: int = 0  # bytes of text, about: a fixed sample, spread over the whole source; 0: all of it

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
        """The options of reading text that are not at their defaults: with the text, what its shards depend on."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.default != getattr(self, f.name)}
        return {name: value for name, value in mine.items() if name not in ("text", "shards", "weight")}


@dataclass(frozen=True)
class Data:
    """What the model reads, in rows of `length` tokens."""

    sources: tuple[Source, ...] = ()
    tokenizer: str = "qwen"  # 'qwen', a .tiktoken or .model file, 'train:SIZE': sentencepiece BPE made from the text,
    # or INIT_FROM
    seq_len: int = 2048
    batch_size: int = 2048  # sequences per step, over all devices; 2048 x 2048 = the report's 4M tokens
    document_mask: bool = (
        False  # documents packed into one row see only themselves; the report's plain packing is False
    )
    eval_tokens: int = 1 << 20  # held-out tokens read by an evaluation, at most

    def __post_init__(self):
        check(self.seq_len > 1, f"data.seq_len={self.seq_len} must be at least 2")
        check(self.batch_size > 0 and self.eval_tokens > 0, "data.batch_size and data.eval_tokens must be positive")


@dataclass(frozen=True)
class ChatFile:
    """A file of the chat schema, as `python -m qwenjax.data convert` writes it (docs/data.md)."""

    path: str = ""
    weight: float = 1.0  # share of the rows, relative to the other files

    def __post_init__(self):
        check(
            self.weight > 0, f"weight {self.weight} of chat file {self.path!r} must be positive; leave it out instead"
        )


@dataclass(frozen=True)
class Chat:
    """What alignment reads: conversations (sft), preferences (reward, dpo) or prompts (ppo, grpo, reinforce)."""

    files: tuple[ChatFile, ...] = ()
    loss_mask: str = (
        "assistant"  # whose tokens carry loss: assistant (report §3.1.2) | finetune_py | all_but_user_content
    )
    truncate: str = "turns"  # of dialogues longer than a row: turns (the oldest go) | end (cut) | leave_out
    packed: bool = True  # sft: as many dialogues in a row as fit, each seeing only itself
    validation: float = 0.03  # share of the dialogues held out

    def __post_init__(self):
        one_of("chat.loss_mask", self.loss_mask, ("assistant", "finetune_py", "all_but_user_content"))
        one_of("chat.truncate", self.truncate, ("turns", "end", "leave_out"))
        check(0 <= self.validation < 1, f"chat.validation={self.validation} must lie in [0, 1)")
