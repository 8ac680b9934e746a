"""Names, paths and directories to tokenizers; what cannot be found or read says so."""

import importlib.util
import subprocess
import sys

import pytest

from qwenjax.tokenizer import FILES, load_tokenizer


def test_saved_tokenizers_load_from_file_directory_and_run(either, tmp_path):
    file = either.save(tmp_path / "run" / "tokenizer")
    assert file.name in FILES
    for path in (file, file.parent, file.parent.parent, str(file)):
        copy = load_tokenizer(path)
        assert type(copy) is type(either)
        assert (copy.fingerprint, copy.size, copy.name) == (either.fingerprint, either.size, either.name)


def test_missing_vocabulary_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'qwenjax\[vocab\]'"):
        load_tokenizer("qwen")


def test_what_is_no_tokenizer_is_refused(tmp_path, small):
    with pytest.raises(ValueError, match="no tokenizer 'qwem': wanted 'qwen'"):
        load_tokenizer("qwem")
    with pytest.raises(ValueError, match=r"put qwen\.tiktoken, tokenizer\.model, tokenizer\.json or vocab\.json into"):
        load_tokenizer(tmp_path)
    other = tmp_path / "vocab.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match=r"vocab\.json is not a tokenizer"):
        load_tokenizer(other)
    for name in ("bad.model", "bad.tiktoken"):
        (tmp_path / name).write_bytes(b"neither one nor the other")
        with pytest.raises(ValueError, match=name):
            load_tokenizer(tmp_path / name)
    small.save(tmp_path)
    (tmp_path / "qwen.tiktoken").write_bytes(b"")
    with pytest.raises(ValueError, match="holds both"):
        load_tokenizer(tmp_path)


def test_importing_and_loading_stay_light():
    """No engine for the import, and neither jax nor the package that ships the vocabulary for loading it."""
    code = """if True:
        import sys, qwenjax.tokenizer
        assert not {"tiktoken", "sentencepiece", "jax", "numpy"} & set(sys.modules), "import"
        assert qwenjax.tokenizer.load_tokenizer("qwen").size == 151851
        assert not {"dashscope", "sentencepiece", "jax"} & set(sys.modules), "load"
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
