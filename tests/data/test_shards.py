"""Random access to shards, and how damage is recognised."""

import json
import threading

import numpy as np
import pytest
from data_doubles import ByteTokenizer

from qwenjax.data.shards.format import Shards, token_dtype, write_shard

pytest_plugins = ["data_fixtures"]


def write(directory, arrays_per_file, page=10, size=257):
    """Shards written by hand: a list of documents (token lists) per train file."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for f, arrays in enumerate(arrays_per_file):
        rows = ((np.array(a, np.uint32), len(a), f"doc {f}.{d}") for d, a in enumerate(arrays))
        files.append(write_shard(directory, f"train-{f}", rows, token_dtype(size), page))
    total = {key: sum(file[key] for file in files) for key in ("tokens", "documents", "bytes")}
    empty = {"tokens": 0, "documents": 0, "bytes": 0, "files": []}
    index = {"version": 1, "page": page, "dtype": token_dtype(size).str, "tokenizer": {"eot": 256}}
    index["splits"] = {"train": {**total, "files": files}, "validation": empty}
    (directory / "index.json").write_text(json.dumps(index))
    return Shards(directory)


def test_reads_across_pages_and_files(tmp_path):
    """Files of 25, 10 and 3 tokens, pages of 10: every start and length."""
    documents = [[[*range(25)]], [[*range(25, 30)], [*range(30, 35)]], [[35, 36, 37]]]
    shards = write(tmp_path / "s", documents)
    assert shards.tokens("train") == 38
    for start in range(39):
        for n in range(39 - start):
            got = shards.read("train", start, n)
            assert got.dtype == np.int32
            assert got.tolist() == list(range(start, start + n))
    for start, n in [(-1, 2), (0, 39), (38, 1), (5, -1)]:
        with pytest.raises(ValueError, match="has 38"):
            shards.read("train", start, n)
    assert shards.read("validation", 0, 0).tolist() == []


def test_documents_of_any_range(tmp_path):
    shards = write(tmp_path / "s", [[[1] * 4, [2] * 1, [3] * 6], [[4] * 5], [[5] * 2, [6] * 3]])
    spans = [(0, 4), (4, 5), (5, 11), (11, 16), (16, 18), (18, 21)]
    for start in range(21):
        for stop in range(start + 1, 22):
            expected = [span for span in spans if span[0] < stop and span[1] > start]
            assert [(d.start, d.stop) for d in shards.documents("train", start, stop)] == expected
    assert [d.origin for d in shards.documents("train", 10, 17)] == ["doc 0.2", "doc 1.0", "doc 2.0"]


def test_vocabularies_over_65536_use_four_bytes(tmp_path):
    assert (token_dtype(65_536), token_dtype(65_537)) == (np.dtype("<u2"), np.dtype("<u4"))
    assert write(tmp_path / "s", [[[151_850, 0, 65_536]]], size=151_851).read("train", 0, 3).tolist() == [
        151_850,
        0,
        65_536,
    ]


def test_threads_read_what_one_reads(shards):
    whole = shards.read("train", 0, shards.tokens("train"))
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for start in rng.integers(0, len(whole) - 700, 200):
            if not np.array_equal(shards.read("train", int(start), 700), whole[start : start + 700]):
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_opening_opens_no_shard_file(shards):
    assert Shards(shards.directory)._reader.cache_info().currsize == 0


def test_missing_index_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*python -m qwenjax\.data tokenize"):
        Shards(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is unfinished"):
        Shards(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 1, "spl')
    with pytest.raises(ValueError, match=r"index\.json is no JSON"):
        Shards(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="has version 99, this program reads 1"):
        Shards(tmp_path)


@pytest.mark.parametrize("what", ["tokens", "documents"])
def test_truncated_and_missing_files_are_named_at_opening(shards, what):
    file = shards.directory / shards.index["splits"]["train"]["files"][1]["files"][what]["name"]
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"{file.name} is missing or truncated: it has [\d,]+ bytes, wanted [\d,]+"):
        Shards(shards.directory)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} is missing or truncated: it has 0 bytes"):
        Shards(shards.directory)


def read_or_error(shards, start):
    """A page of tokens, or what the error says."""
    try:
        return shards.read("train", start, shards.page)
    except ValueError as error:
        return str(error)


def test_any_flipped_bit_is_noticed_or_harmless(shards):
    """A changed byte never gives other tokens in silence: the read fails naming file and page, or is right."""
    entry = shards.index["splits"]["train"]["files"][0]
    file = shards.directory / entry["files"]["tokens"]["name"]
    data, failed = file.read_bytes(), 0
    whole = shards.read("train", 0, entry["tokens"])
    for at in np.random.default_rng(0).integers(0, len(data), 40):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        file.write_bytes(damaged)
        opened = Shards(shards.directory)
        for page in range(len(whole) // opened.page):
            start = page * opened.page
            outcome = read_or_error(opened, start)
            if isinstance(outcome, str):
                failed += 1
                assert f"{file.name}: page {page} cannot be read" in outcome or "is not the file" in outcome
            else:
                assert np.array_equal(outcome, whole[start : start + opened.page])
        with pytest.raises(ValueError, match=f"{file.name} has changed"):
            opened.verify()
    assert failed
    file.write_bytes(data)
    Shards(shards.directory).verify()


def test_wrong_tokenizer_is_named(shards):
    shards.check_tokenizer(ByteTokenizer())
    other = ByteTokenizer(fingerprint="c" * 64)
    other.name = "other"
    with pytest.raises(
        ValueError, match=r"made with tokenizer 'bytes' .*bbbb.*not with other .*cccc.*or tokenise again"
    ):
        shards.check_tokenizer(other)
