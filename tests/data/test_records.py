"""TFDS and Hugging Face data sets, read by row number; neither TensorFlow nor a network is there."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_doubles import ByteTokenizer

import qwenjax.tokenizer
from qwenjax.config import Data, Source
from qwenjax.data.shards.prepare import prepare
from qwenjax.data.shards.write import tokenize
from qwenjax.sources import files
from qwenjax.sources.documents import cut, documents, read, slices
from qwenjax.sources.slices import Report

BODY = [f"body {i} 中文\n" * (1 + i % 5) for i in range(300)]


@pytest.fixture(scope="session")
def news(tmp_path_factory):
    """A data set such as others prepare: text under another name, beside features of other kinds."""

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self):  # TFDS would leave a folder in the system's temporary directory
            pass

    class News(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.3")
        code_path = None

        def _info(self):
            text, numbers = tfds.features.Text(), tfds.features.Tensor(shape=(None,), dtype=np.int64)
            features = {"headline": text, "article": text, "votes": numbers, "id": np.int64, "photo": text}
            return Info(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples(0, 300), "test": self._generate_examples(0, 10)}

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                row = {"headline": f"head {i}", "article": BODY[i], "votes": [1, 2], "id": i, "photo": "x"}
                yield i, row

    folder = tmp_path_factory.mktemp("tfds")
    News(data_dir=str(folder), file_format="array_record").download_and_prepare(file_format="array_record")
    return folder / "news" / "1.2.3"


def read_all(source, report=None):
    return list(documents(source, report))


def test_a_data_set_prepared_by_others_is_read_by_row(news):
    source = Source(text=f"tfds:{news}", column=("article",))
    found = read_all(source)
    assert sorted(d.text for d in found) == sorted(BODY)
    assert [d.origin for d in found] == [f"tfds:news/1.2.3@train#{i}" for i in range(300)]
    (whole,) = slices(source, Report())
    assert whole.size == pytest.approx(sum(len(text.encode()) for text in BODY), rel=0.1)
    pieces = cut(whole, 1000)
    assert len(pieces) > 10
    assert [d for piece in pieces for d in read(piece, Report())] == found


def test_names_folders_and_splits(news, monkeypatch):
    column = ("headline", "article")
    monkeypatch.setenv("TFDS_DATA_DIR", str(news.parent.parent))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(news.parent.parent))
    whole = read_all(Source(text=str(news), column=column))  # a folder that TFDS has prepared needs no prefix
    assert {d.text for d in whole} == {f"head {i}\n\n{body}" for i, body in enumerate(BODY)}
    for text in (f"tfds:{news}", "tfds:news", "tfds:news:1.2.3@train", "tfds:news@train"):
        assert read_all(Source(text=text, column=column)) == whole
    test = read_all(Source(text="tfds:news@test", column=("article",)))
    assert sorted(d.text for d in test) == sorted(BODY[:10])
    part = read_all(Source(text="tfds:news@train[:10%]", column=column))
    assert [d.text for d in part] == [d.text for d in whole[:30]]


def test_what_cannot_be_read_says_what_to_do(news, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "empty"))
    info = json.loads((news / "dataset_info.json").read_text())
    other = tmp_path / "news" / "1.2.3"
    other.mkdir(parents=True)
    (other / "features.json").write_bytes((news / "features.json").read_bytes())
    (other / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    prepare = r"download_and_prepare\(file_format='array_record'\)"
    for text, message in [
        (str(news), r"no column 'text'; it has: .*article.*--column"),
        (f"tfds:{news}@dev", "Unknown split 'dev'"),
        ("tfds:nothing_such", rf"no prepared TFDS data set 'nothing_such' in .*{prepare}"),
        ("tfds:news/large:9.9.9", rf"no prepared TFDS data set .*{prepare}"),
        (f"tfds:{news.parent}", r"is not a prepared TFDS data set.*wanted one version of it: .*1\.2\.3"),
        (f"tfds:{other}", rf"stored as tfrecord, which cannot be read by row number.*builder\('news'.*{prepare}"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_all(Source(text=text) if "column" in message else Source(text=text, column=("article",)))


def test_a_damaged_record_is_left_out(news, tmp_path):
    copy = tmp_path / "news" / "1.2.3"
    copy.mkdir(parents=True)
    for file in news.iterdir():
        data = bytearray(file.read_bytes())
        if "train" in file.name:
            data[20_000] ^= 1
        (copy / file.name).write_bytes(data)
    source = Source(text=str(copy), column=("article",))
    report = Report()
    found = read_all(source, report)
    assert len(found) == 299
    (reason, (count, origin)), *_ = report.items()
    assert (reason, count) == ("damaged record", 1)
    assert origin not in {d.origin for d in found}
    next(copy.glob("*train*")).write_bytes(b"")  # and all of them
    with pytest.raises(ValueError, match="300 x damaged record"):
        read_all(source)


def test_rows_of_a_group_and_a_sample(news, monkeypatch):
    grouped = read_all(Source(text=str(news), column=("headline",), group="photo", join=","))
    assert [d.origin for d in grouped] == ["tfds:news/1.2.3@train#0"]
    assert sorted(grouped[0].text.split(",")) == sorted(f"head {i}" for i in range(300))
    monkeypatch.setattr(files, "BATCH", 1)
    total = sum(len(text.encode()) for text in BODY)
    sample = read_all(Source(text=str(news), column=("article",), limit=total // 3))
    assert 60 < len(sample) < 140
    assert set(sample) < set(read_all(Source(text=str(news), column=("article",))))


def test_two_workers_read_what_one_does_without_tensorflow(news, tmp_path):
    source = Source(text=f"tfds:{news}", column=("article",))
    one = tokenize([source], tmp_path / "one", ByteTokenizer(), workers=1, progress=False)
    two = tokenize([source], tmp_path / "two", ByteTokenizer(), workers=2, progress=False)
    assert one.index["splits"] == two.index["splits"]
    assert one.index["splits"]["train"]["documents"] + one.index["splits"]["validation"]["documents"] == 300
    code = (
        "import sys\nfrom qwenjax.config import Source\nfrom qwenjax.sources.documents import documents\n"
        "assert sum(1 for _ in documents(Source(text=sys.argv[1], column=('article',)))) == 300\n"
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(news)], check=True)


def test_an_experiment_reads_it(news, tmp_path, monkeypatch):
    monkeypatch.setattr(qwenjax.tokenizer, "load_tokenizer", lambda name: ByteTokenizer())
    source = Source(text=f"tfds:{news.parent / '1.2.3'}@train[:50%]", column=("article",))
    data = Data(sources=(source,), tokenizer="bytes", seq_len=16, batch_size=2)
    _, (shards,), _ = prepare(data, 0, tmp_path, progress=False)
    assert {span.origin.partition("#")[0] for span, _ in shards.all_documents("train")} == {
        "tfds:news/1.2.3@train[:50%]"
    }
    assert not set(":@[]%") & set(shards.directory.name)
    assert sum(shards.index["splits"][split]["documents"] for split in ("train", "validation")) == 150


# ---- Hugging Face ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder as the hub has them, and the same data set saved to disk with and without splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    rows = [json.dumps({"id": i, "article": body, "title": None if i % 2 else f"t{i}"}) for i, body in enumerate(BODY)]
    (tmp_path / "repo" / "train.jsonl").write_text("\n".join(rows))
    held = datasets.Dataset.from_list([json.loads(row) for row in rows])
    held.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": held, "test": held.select(range(9))}).save_to_disk(tmp_path / "splits")
    return tmp_path


def test_hugging_face_rows(hub):
    texts = [body if i % 2 else f"t{i}\n\n{body}" for i, body in enumerate(BODY)]
    for name in ("repo", "one", "splits"):
        found = read_all(Source(text=f"hf:{hub / name}", column=("title", "article")))
        assert [d.text for d in found] == texts
        assert [d.origin for d in found] == [f"hf:{name}@train#{i}" for i in range(300)]
    test = read_all(Source(text=f"hf:{hub / 'splits'}@test", column=("article",)))
    assert [d.text for d in test] == BODY[:9]
    (whole,) = slices(Source(text=f"hf:{hub / 'repo'}@train[:20]", column=("article",)), Report())
    found = [d.text for piece in cut(whole, 100) for d in read(piece, Report())]
    assert found == BODY[:20]


def test_hugging_face_errors_say_what_there_is(hub, monkeypatch):
    for text, message in [
        (f"hf:{hub / 'repo'}@dev", 'Unknown split "dev"'),
        (f"hf:{hub / 'splits'}@dev", "no split 'dev'; it has: train, test"),
        (f"hf:{hub / 'one'}@dev", "without splits; leave out @dev"),
        (f"hf:{hub / 'repo'}", "no column 'text'; it has: id, article, title"),
        (f"hf:{hub / 'repo'}#other", "'other' not found"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_all(Source(text=text))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'qwenjax\[hf\]'"):
        read_all(Source(text="hf:a/b"))
