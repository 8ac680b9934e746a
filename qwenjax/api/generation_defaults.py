"""How a checkpoint is meant to be used: whether it chats, which tokens end its texts, how its release samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwenjax.api.checkpoint_path import CheckpointPath
from qwenjax.common.storage import read_json
from qwenjax.config import RL_TASKS, ModelConfig
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.interop.huggingface.directory import KEPT
from qwenjax.interop.huggingface.tokenizer import generation_config
from qwenjax.tokenizer import Tokenizer

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")  # what a `Sample` can be asked for
# Keys of generation_config.json that say how to sample
SAMPLING_KEYS = ("do_sample", *SAMPLING, "max_new_tokens")


@dataclass(frozen=True)
class GenerationDefaults:
    """What the files of a checkpoint say about generation."""

    chat: bool = False  # it was trained on dialogues in ChatML
    eos_ids: frozenset[int] = frozenset()  # that end its texts, besides the tokenizer's own
    sampling: Mapping[str, Any] = field(default_factory=dict)  # of generation_config.json, those of `SAMPLING_KEYS`
    max_window_size: int | None = None  # tokens of a conversation's history; None if the files do not say
    from_run: bool = False  # a run of `qwenjax.train`, whose texts begin with <|endoftext|>, as in training

    @classmethod
    def of(cls, source: CheckpointPath) -> "GenerationDefaults":
        """Those of a checkpoint; adapters add what their own files say to those of the base model."""
        if source.meta:
            return cls(chat=source.meta["experiment"].get("task") in ("sft", "dpo", *RL_TASKS), from_run=True)
        if source.hub_checkpoint:
            return cls._of_files(source.hub_checkpoint.files)
        files = {name: read_json(source.path / name) for name in KEPT if (source.path / name).is_file()}
        own, base = cls._of_files({"config.json": {}, **files}), cls.of(source.base)
        sampling = {**base.sampling, **own.sampling}
        return replace(base, chat=own.chat or base.chat, eos_ids=own.eos_ids | base.eos_ids, sampling=sampling)

    @classmethod
    def _of_files(cls, files: Mapping[str, Any]) -> "GenerationDefaults":
        """Those of the files of a checkpoint of other programs."""
        if head := files.get("gguf"):
            eos = (head.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
            template = head.get("tokenizer.chat_template") or ""
            return cls("<|im_start|>" in template, frozenset(i for i in eos if isinstance(i, int)))
        values = files.get("generation_config.json", {})
        eos = values.get("eos_token_id", files["config.json"].get("eos_token_id"))
        template = str(files.get("tokenizer_config.json", {}).get("chat_template") or "")
        window = values.get("max_window_size")
        return cls(
            values.get("chat_format") == "chatml" or "<|im_start|>" in template,
            frozenset(i for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int)),
            {key: values[key] for key in SAMPLING_KEYS if values.get(key) is not None},
            window if isinstance(window, int) else None,
        )

    def sampler(self, **changes: float) -> Greedy | Sample:
        """How the release samples, with changes of temperature, top_p, top_k or repetition_penalty.

        Where the release does not sample, a temperature, top_p or top_k asks for it; temperature 0 is greedy.
        """
        values = {key: self.sampling[key] for key in SAMPLING if key in self.sampling} | changes
        sample = self.sampling.get("do_sample", False) or changes.keys() & {"temperature", "top_k", "top_p"}
        if sample and values.get("temperature", 1.0) >= 0.01:  # the releases' server draws the line there
            return Sample(**values)
        return Greedy(values.get("repetition_penalty", 1.0))

    @property
    def max_new_tokens(self) -> int:
        """The longest answer: as the release says, or 512."""
        return self.sampling.get("max_new_tokens", 512)

    def generation_config(self, tokenizer: Tokenizer | None, layout: str, config: ModelConfig) -> dict[str, Any] | None:
        """generation_config.json for a written model: a run samples as the releases do, others as their files say."""
        if tokenizer is None:
            return None
        values = generation_config(tokenizer, layout, config, self.chat)
        if self.from_run:
            return values
        own = dict(self.sampling)
        if layout == "qwen" and self.max_window_size:
            own["max_window_size"] = self.max_window_size
        return {key: value for key, value in values.items() if key not in SAMPLING_KEYS} | own
