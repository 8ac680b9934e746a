"""The chat template of a GGUF file with a sentencepiece vocabulary."""

import pickle

import pytest
import tiny_model

from qwenjax.interop.gguf.write import vocabulary
from qwenjax.tokenizer.gguf import tokenizer_of

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"


def test_it_is_used_by_workers_too_and_never_lost_in_silence(tmp_path):
    head = vocabulary(tiny_model.tokenizer(), 512, TEMPLATE)
    ours = tokenizer_of(head, "model.gguf")
    turns = [{"role": "user", "content": "Hi<|im_end|>"}]
    for tokenizer in (ours, pickle.loads(pickle.dumps(ours))):
        ids = tokenizer.encode_chat(turns, add_generation_prompt=False)
        assert tokenizer.decode(ids) == "<|im_start|>user:Hi<|im_end|><|im_end|>"
        assert ids.count(tokenizer.im_end) == 1
    with pytest.raises(ValueError, match=r"the chat template of .* would be lost"):
        ours.save(tmp_path)
