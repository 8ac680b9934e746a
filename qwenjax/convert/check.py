"""Proof that a written checkpoint is the same model: every tensor bit by bit, hidden states against transformers.

Axes: b texts, t positions, d embed, v vocabulary.
"""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from qwenjax.api.checkpoint_path import CheckpointPath, detect
from qwenjax.api.generation_defaults import GenerationDefaults
from qwenjax.api.parameters import read_adapter, read_params
from qwenjax.config import Compute, ModelConfig
from qwenjax.interop.huggingface.save import as_tensors
from qwenjax.interop.peft import Adapter
from qwenjax.model import transformer
from qwenjax.model.layers import Block
from qwenjax.tokenizer import Tokenizer

TEXT = "The cat's 3 hats, naïve “quotes” and\n\n\tif x != 7:  # 天地玄黄 👩\u200d👧 \r\n"
TEXTS = 1000  # strings that transformers reads with the written tokenizer
_USER = {"role": "user", "content": "Who are you?"}
CONVERSATIONS = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER],
    [_USER, {"role": "assistant", "content": "A model."}, {"role": "user", "content": "<|im_end|> Whose?"}],
)
Q8 = 0.0045  # of a block's largest value: half of 1/127, and the rounding of the scale to 11 bits
PLAIN = Compute(dtype="float32", remat="none", attention="xla", fuse="no")
ROWS, LENGTH = 2, 48  # of the ids that both models read
TOLERANCE = 1e-4  # of the largest value at a position; float32 sums in another order differ by less


def check(source: CheckpointPath, params: dict, out: Path, to: str, dtype: str, quant: str) -> Iterator[str]:
    """Lines that say what agrees. Raises ValueError, with its name, for what differs."""
    again = detect(out)
    yield from _same_config(source.config, again.config)
    yield _same_tensors(source.config, params, again, to, dtype, quant)
    yield from _same_tokenizer(source, again)
    yield from _same_behaviour(source, again)
    if to == "qwen2":
        yield from _same_in_transformers(again)
    yield from _same_mathematics(source, params, again, to)


def check_adapter(source: CheckpointPath, adapter: Adapter, out: Path) -> Iterator[str]:
    """The same for written adapters."""
    again = detect(out)
    read = read_adapter(again)
    for name in ("rank", "alpha", "base_dtype"):
        ours, theirs = getattr(adapter.lora, name), getattr(read.lora, name)
        if ours != theirs and not (name == "alpha" and math.isclose(ours, theirs)):
            raise ValueError(f"{out} reads back as adapters of lora.{name}={theirs} instead of {ours}")
    wanted, got = (dict(jax.tree_util.tree_flatten_with_path(x.trained)[0]) for x in (adapter, read))
    for path, ours in wanted.items():
        if path not in got or not np.array_equal(_bits(np.asarray(ours)), _bits(got[path])):
            raise ValueError(f"{jax.tree_util.keystr(path)} of {out} is not what was written")
    yield f"adapters      {len(wanted)} arrays read back, bit by bit as written"
    yield from _same_tokenizer(source, again)
    size = ROWS, min(LENGTH, source.config.context)
    ids = np.random.default_rng(0).integers(0, source.config.vocab, size)
    ours, theirs = (dict(states(source.config, read_params(one), ids))["logits"] for one in (source, again))
    relative = float((np.abs(ours - theirs).max(axis=-1) / np.abs(ours).max(axis=-1)).max())
    if not relative <= TOLERANCE:
        raise ValueError(f"with {out} merged in, logits differ by {relative:.1e} of the largest of their position")
    yield f"mathematics   with the written adapters merged in, logits differ by at most {relative:.1e} of the largest"


def _same_config(wanted: ModelConfig, got: ModelConfig) -> Iterator[str]:
    unlike = [f.name for f in dataclasses.fields(ModelConfig) if getattr(wanted, f.name) != getattr(got, f.name)]
    lost = [name for name in unlike if name in ("ntk", "logn", "windows")]
    if wrong := [name for name in unlike if name not in lost]:
        listed = ", ".join(f"{name}={getattr(got, name)!r} instead of {getattr(wanted, name)!r}" for name in wrong)
        raise ValueError(f"the result reads back as another model: {listed}")
    yield "config        reads back the same" + (f", but for {', '.join(lost)} (see the notes)" if lost else "")


def _same_tensors(config: ModelConfig, params: dict, again: CheckpointPath, to: str, dtype: str, quant: str) -> str:
    layout = "qwen" if to == "qwen" else "qwen2"
    wanted, got = as_tensors(config, params, layout, None if to == "gguf" else dtype), again.hub_checkpoint.tensors
    if wanted.keys() != got.keys():
        odd = sorted(wanted.keys() ^ got.keys())
        raise ValueError(f"{again.path} has other tensors: {', '.join(odd[:4])} on one side only")
    worst = 0.0
    for name, tensor in wanted.items():
        ours, theirs = tensor.read(), got[name].read()
        if to == "gguf" and ours.ndim > 1 and quant == "q8_0" and ours.shape[-1] % 32 == 0:
            worst = max(worst, _q8_error(ours, theirs))
            continue
        if to == "gguf":
            ours = ours.astype(np.float16 if ours.ndim > 1 else np.float32)
        if ours.dtype != theirs.dtype or not np.array_equal(_bits(ours), _bits(theirs)):
            raise ValueError(f"tensor {name!r} of {again.path} is not what was written")
    if not worst:
        return f"tensors       {len(wanted)} read back, bit by bit as written"
    if worst > Q8:
        raise ValueError(f"{again.path}: a value is off by {worst:.1%} of its block's largest; q8_0 allows {Q8:.2%}")
    return f"tensors       {len(wanted)} read back; q8_0 is off by {worst:.2%} of a block's largest value at most"


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint16 if x.dtype in (np.float16, ml_dtypes.bfloat16) else np.uint32)


def _q8_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a fraction of the largest value of its block of 32."""
    ours, theirs = (x.astype(np.float32).reshape(-1, 32) for x in (ours, theirs))
    largest = np.maximum(np.abs(ours).max(axis=1, keepdims=True), 1e-30)
    return float((np.abs(ours - theirs) / largest).max())


def _same_tokenizer(source: CheckpointPath, again: CheckpointPath) -> Iterator[str]:
    ours, theirs = source.tokenizer(), again.tokenizer()
    if ours is None or theirs is None:
        yield "tokenizer     none"
        return
    texts = [TEXT, *(TEXT + surface + TEXT for surface in sorted(ours.special)[:8])]
    for text in texts:
        if ours.encode(text) != theirs.encode(text) or ours.encode_ordinary(text) != theirs.encode_ordinary(text):
            raise ValueError(f"the tokenizer of {again.path} gives other ids, e.g. of {text!r}")
    yield f"tokenizer     {theirs.name} gives the ids of {ours.name}"


def _same_behaviour(source: CheckpointPath, again: CheckpointPath) -> Iterator[str]:
    """Prompts of conversations, and what ends an answer."""
    ours, theirs = source.tokenizer(), again.tokenizer()
    if ours is None or theirs is None:
        return
    defaults, written = GenerationDefaults.of(source), GenerationDefaults.of(again)
    if defaults.chat and ours.chat_template is not None:
        for turns in CONVERSATIONS:
            wanted, got = (_outcome(one, turns) for one in (ours, theirs))
            if wanted != got:
                raise ValueError(f"{again.path} writes another prompt for {turns[-1]['content']!r}: {got!r:.200}")
        yield f"chat          {len(CONVERSATIONS)} conversations become the same prompts"
    eos = {*defaults.eos_ids, ours.eot, *((ours.turn_end,) if defaults.chat else ())}
    if not eos <= {*written.eos_ids, theirs.eot, *((theirs.turn_end,) if written.chat else ())}:
        raise ValueError(f"{again.path} does not end texts at all of {sorted(eos)}, as the source does")
    settings, again_settings = dict(defaults.sampling), dict(written.sampling)
    is_gguf = any("gguf" in one.hub_checkpoint.files for one in (source, again) if one.hub_checkpoint)
    if source.hub_checkpoint and not is_gguf and settings != again_settings:  # GGUF has no such settings
        raise ValueError(f"{again.path} samples with {again_settings}, the source with {settings}")
    yield f"ends          at {', '.join(map(repr, (ours.decode([i]) for i in sorted(eos) if i < ours.size)))}"


def _outcome(tokenizer: Tokenizer, turns: list[dict[str, str]]) -> list[int] | str:
    """Ids of a prompt, or the words of a template that refuses it."""
    try:
        return tokenizer.encode_chat(turns)
    except ValueError as error:
        return str(error)


def _same_in_transformers(again: CheckpointPath) -> Iterator[str]:
    """Ids of the written tokenizer against those of the program that will read it."""
    tokenizer = again.tokenizer()
    if tokenizer is None or importlib.util.find_spec("transformers") is None:
        return
    import transformers

    transformers.logging.set_verbosity_error()
    theirs = transformers.AutoTokenizer.from_pretrained(again.path)
    for text in _texts():
        got, wanted = theirs(text)["input_ids"], [*tokenizer.prefix, *tokenizer.encode_ordinary(text)]
        if got != wanted:
            raise ValueError(f"AutoTokenizer of transformers reads {text!r:.80} from {again.path} as {got[:8]} …")
    yield f"              and {type(theirs).__name__} of transformers gives the same ids for {TEXTS:,} strings"


def _texts() -> Iterator[str]:
    """Strings of words, numbers, blanks and signs of several scripts, always the same."""
    words = ["3.14", "ümlaut", "हिन्दी", "한국어", "é", "(x)", "中文，"]
    pieces = [*re.findall(r"\S+|\s+", TEXT), *words, "  ", "\n\n", "\t"]
    random = np.random.default_rng(0)
    for _ in range(TEXTS):
        yield "".join(random.choice(pieces, random.integers(1, 12)))


def _same_mathematics(source: CheckpointPath, params: dict, again: CheckpointPath, to: str) -> Iterator[str]:
    """Against transformers, which loads the source, if it is a directory that is not quantised, else the result."""
    hub, files = source.hub_checkpoint, source.hub_checkpoint.files if source.hub_checkpoint else {}
    quantised = "quantize_config.json" in files or files.get("config.json", {}).get("quantization_config")
    if hub and hub.layout == "qwen2" and source.path.is_dir() and not quantised:
        reference = source.path
    elif to == "qwen2":
        reference = again.path
    else:
        yield "mathematics   not run: transformers cannot load either model without remote code; use --to=qwen2"
        return
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        yield "mathematics   not run: pip install 'qwenjax[parity]'"
    else:
        yield from compare_layers(source.config, params, reference)


# ---- layer by layer ----


def compare_layers(config: ModelConfig, params: dict, reference: Path) -> Iterator[str]:
    """Lines of a table of differences, and its conclusion."""
    ids = np.random.default_rng(0).integers(0, config.vocab, (ROWS, min(LENGTH, config.context)))
    kind, theirs = _theirs(reference, ids)
    shape = " x ".join(map(str, ids.shape))
    yield f"mathematics   {kind} of transformers reads {reference}; both in float32, on {shape} ids"
    yield f"  {'after':<10} {'largest value':>14} {'difference':>12} {'relative':>10}"
    first = None
    for (name, ours), other in zip(states(config, params, ids), theirs, strict=True):
        difference, largest = np.abs(ours - other).max(axis=-1), np.abs(other).max(axis=-1)
        relative = float((difference / np.maximum(largest, 1e-30)).max())
        yield f"  {name:<10} {largest.max():>14.4g} {difference.max():>12.1e} {relative:>10.1e}"
        if not relative <= TOLERANCE:
            first = first or name
    if first:
        raise ValueError(f"the two differ after {first}: {kind} computes something else from there on")
    yield f"  they agree: no difference is above {TOLERANCE:g} of the largest value of its position"


def states(config: ModelConfig, params: dict, ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Ours: ('embedding', [b t d]), ('layer 0', …), …, ('logits', [b t v])."""
    model = transformer.Transformer(config, PLAIN)

    @jax.jit
    def run(params: dict) -> tuple[jax.Array, jax.Array]:
        (hidden, _), kept = model.apply(
            {"params": params},
            ids,
            lengths=jnp.full(*ids.shape),
            capture_intermediates=lambda module, method: isinstance(module, Block),
            mutable=["intermediates"],
        )
        return kept["intermediates"]["blocks"]["__call__"][0][0], transformer.logits(params, hidden)

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    layers, logits = run(params)  # [layers b t d], [b t v]
    yield "embedding", np.asarray(params["embed"][ids])
    yield from ((f"layer {i}", x) for i, x in enumerate(np.asarray(layers)))
    yield "logits", np.asarray(logits)


def _theirs(reference: Path, ids: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """The name of the class of transformers, and the outputs of its embedding, layers and head."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(reference, dtype="float32").eval()
    outputs: list[np.ndarray] = []

    def keep(module, args, output) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).numpy())

    for module in (model.model.embed_tokens, *model.model.layers):
        module.register_forward_hook(keep)
    with torch.no_grad():
        outputs.append(model(torch.from_numpy(ids)).logits.numpy())
    return type(model).__name__, outputs
