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

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")  # what commands can ask of a `Sample`
# Numbers of generation_config.json that say how to sample, and the fields of `Sample` of the same meaning
NUMBERS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
NUMBERS |= {"no_repeat_ngram_size": int, "max_new_tokens": int}
FIELDS = {name: name for name in (*SAMPLING, "min_p")} | {"no_repeat_ngram_size": "no_repeat_ngram"}
SAMPLING_KEYS = ("do_sample", *NUMBERS)
TOP_K = 50  # of transformers, where a release samples and does not say
# Other keys that are read or change nothing here
HARMLESS = frozenset(
    """_from_model_config bad_words_ids bos_token_id cache_implementation chat_format eos_token_id
    max_length max_window_size pad_token_id return_dict_in_generate stop_words_ids suppress_tokens transformers_version
    trust_remote_code use_cache""".split()  # noqa: SIM905
)
OFF = {"num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "typical_p": 1.0, "min_length": 0}
OFF |= {"diversity_penalty": 0.0, "num_beam_groups": 1, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


@dataclass(frozen=True)
class GenerationDefaults:
    """What the files of a checkpoint say about generation."""

    chat: bool = False  # it was trained on dialogues, or its files have a chat template
    eos_ids: frozenset[int] = frozenset()  # that end its texts, besides the tokenizer's own
    sampling: Mapping[str, Any] = field(default_factory=dict)  # of generation_config.json, those of `SAMPLING_KEYS`
    max_window_size: int | None = None  # tokens of a conversation's history; None if the files do not say
    banned: tuple[int, ...] = ()  # ids that are never written
    generation: Mapping[str, Any] | None = None  # the whole generation_config.json
    from_run: bool = False  # a run of `qwenjax.train`, whose texts begin with <|endoftext|>, as in training

    @classmethod
    def of(cls, source: CheckpointPath) -> "GenerationDefaults":
        """Those of a checkpoint; adapters add what their own files say to those of the base model."""
        if source.meta:
            chat = source.meta["experiment"].get("task") in ("sft", "dpo", *RL_TASKS)
            sampling = {"do_sample": True, "top_k": 0, "top_p": 0.8}  # as the releases; small models loop when greedy
            return cls(chat=chat, sampling=sampling | ({"repetition_penalty": 1.1} if chat else {}), from_run=True)
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
            return cls(bool(template), frozenset(i for i in eos if isinstance(i, int)))
        values = files.get("generation_config.json", {})
        eos = values.get("eos_token_id", files["config.json"].get("eos_token_id"))
        template = str(files.get("tokenizer_config.json", {}).get("chat_template") or "")
        window = values.get("max_window_size")
        return cls(
            values.get("chat_format") == "chatml" or bool(template),
            frozenset(i for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int)),
            _sampling(values),
            window if isinstance(window, int) else None,
            _banned(values),
            values or None,
        )

    def sampler(self, **changes: float) -> Greedy | Sample:
        """How the release samples, with changes of temperature, top_p, top_k or repetition_penalty.

        Where the release does not sample, a temperature, top_p or top_k asks for it; temperature 0 is greedy.
        """
        own = {field: self.sampling[key] for key, field in FIELDS.items() if key in self.sampling}
        values = own | changes
        sample = self.sampling.get("do_sample", False) or changes.keys() & {"temperature", "top_k", "top_p"}
        if sample and values.get("temperature", 1.0) >= 0.01:  # the releases' server draws the line there
            return Sample(**values)
        always = ("repetition_penalty", "no_repeat_ngram")
        return Greedy(**{key: values[key] for key in always if key in values})

    @property
    def notes(self) -> list[str]:
        """A sentence for each thing that generation_config.json asks for and that is not done here."""
        known = {*SAMPLING_KEYS, *HARMLESS}
        others = {key: value for key, value in (self.generation or {}).items() if key not in known}
        asked = {k: v for k, v in others.items() if v not in (None, False, [], {}) and v != OFF.get(k)}
        words = [f"generation_config.json: {key}={value!r:.60} is ignored" for key, value in sorted(asked.items())]
        several = [ids for ids in (self.generation or {}).get("bad_words_ids") or () if len(ids) > 1]
        return words + ["generation_config.json: bad_words_ids of several tokens are ignored"] * bool(several)

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
        kept = {key: value for key, value in values.items() if key not in SAMPLING_KEYS} | dict(self.generation or {})
        eos = sorted(self.eos_ids)
        if eos and "eos_token_id" not in (self.generation or {}):
            kept["eos_token_id"] = eos if len(eos) > 1 else eos[0]
        return kept


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of generation_config.json that say how to sample, in their types.

    Raises:
      ValueError: a value that is not a number, or out of its range.
    """
    out: dict[str, Any] = {"do_sample": values["do_sample"] is True} if "do_sample" in values else {}
    for key, kind in NUMBERS.items():
        value = values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or kind(value) != value:
            raise ValueError(f"generation_config.json: {key}={value!r}; wanted a number")
        out[key] = kind(value)
    if out.get("top_k") == -1:  # another way to say all
        out["top_k"] = 0
    if out.get("do_sample"):
        out.setdefault("top_k", TOP_K)
    ranges = {"top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (1e-9, 1e9), "temperature": (0, 1e9)}
    for key, (low, high) in ranges.items():
        if not low <= out.get(key, high) <= high or (key == "top_p" and out.get(key) == 0):
            raise ValueError(f"generation_config.json: {key}={out[key]} is out of its range; remove it or correct it")
    return out


def _banned(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that `suppress_tokens` and `bad_words_ids` of one token forbid. ValueError for anything but lists of ids."""
    suppressed, words = values.get("suppress_tokens") or [], values.get("bad_words_ids") or []
    lists = [suppressed, *words] if isinstance(words, list) else [words]
    if not all(isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids) for ids in lists):
        raise ValueError("generation_config.json: suppress_tokens or bad_words_ids is not a list of ids")
    return tuple(sorted({*suppressed, *(ids[0] for ids in words if len(ids) == 1)}))
