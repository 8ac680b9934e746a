"""How a checkpoint is meant to be used: whether it chats, what ends its texts, how its release samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwenjax.config import RL_TASKS, ModelConfig
from qwenjax.interop.huggingface.tokenizer import generation_config
from qwenjax.tokenizer import Tokenizer

# Keys of generation_config.json that say how to sample
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")


@dataclass(frozen=True)
class GenerationDefaults:
    """What lies beside the weights.

    Attributes:
      chat: it was trained on dialogues in ChatML.
      ends: ids that end its texts, beside the tokenizer's own.
      sampling: entries of generation_config.json, by `SAMPLING`.
      max_window_size: tokens that a conversation's history may have; None: not said.
      ours: a run of ours, whose texts begin with the end of the one before, as rows of training do.
    """

    chat: bool = False
    ends: frozenset[int] = frozenset()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_window_size: int | None = None
    ours: bool = False

    @classmethod
    def of_run(cls, meta: Mapping[str, Any]) -> "GenerationDefaults":
        """Of a run: its task says whether it saw dialogues."""
        return cls(chat=meta["experiment"].get("task") in ("sft", "dpo", *RL_TASKS), ours=True)

    @classmethod
    def of_files(cls, files: Mapping[str, Any]) -> "GenerationDefaults":
        """Of what interop found beside the tensors."""
        if head := files.get("gguf"):
            named = (head.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
            template = head.get("tokenizer.chat_template") or ""
            return cls("<|im_start|>" in template, frozenset(i for i in named if isinstance(i, int)))
        said = files.get("generation_config.json", {})
        ends = said.get("eos_token_id", files["config.json"].get("eos_token_id"))
        ends = ends if isinstance(ends, list) else [ends]
        template = str(files.get("tokenizer_config.json", {}).get("chat_template") or "")
        window = said.get("max_window_size")
        return cls(
            said.get("chat_format") == "chatml" or "<|im_start|>" in template,
            frozenset(i for i in ends if isinstance(i, int)),
            {key: said[key] for key in SAMPLING if said.get(key) is not None},
            window if isinstance(window, int) else None,
        )

    def generation(self, tokenizer: Tokenizer | None, layout: str, config: ModelConfig) -> dict[str, Any] | None:
        """generation_config.json of what is written: ours as the releases sample, others' as they said themselves."""
        if tokenizer is None:
            return None
        values = generation_config(tokenizer, layout, config, self.chat)
        if self.ours:
            return values
        own = dict(self.sampling)
        if layout == "qwen" and self.max_window_size:
            own["max_window_size"] = self.max_window_size
        return {key: value for key, value in values.items() if key not in SAMPLING} | own
