"""Readers of data sets by row number: TensorFlow Datasets as prepared in array_record format, Hugging Face `datasets`.

`python -m qwenjax.data tokenize --help` has their names. SPLIT is 'train' by default, or a part such as train[:10%].
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from qwenjax.config import Source
from qwenjax.sources.files import BATCH, Row
from qwenjax.sources.slices import Report, Slice

TFDS, HF = "tfds:", "hf:"
SAMPLE = 64  # rows read to estimate how much text there is


@dataclass(frozen=True, eq=False)
class Records:
    """Rows by number."""

    name: str  # equal on every machine
    path: str  # where the data is, or ''
    fields: tuple[str, ...]
    count: int
    read: Callable[[list[int], list[str]], list[Mapping]]  # the given fields of some rows


def is_prepared(folder: Path) -> bool:
    """Whether a folder is one prepared version of a TFDS data set."""
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()


def slices(source: Source, report: Report) -> list[Slice]:
    """The data set as one slice; ValueError for no such data set, split or column, or one not read by row number."""
    open_records.cache_clear()  # it may have been prepared again meanwhile
    records = open_records(source.text)
    wanted = (*source.column, *filter(None, [source.group]))
    if missing := [name for name in wanted if name not in records.fields]:
        columns = f"no column {', '.join(map(repr, missing))}; it has: {', '.join(records.fields)}"
        raise ValueError(f"{source.text} has {columns}. Choose with --column, or column=(…,) in an experiment")
    count = records.count
    if not count:
        report.note("empty data set", records.name)
        return []
    try:
        sample = records.read(sorted({i * count // SAMPLE for i in range(SAMPLE)}), list(source.column))
    except RuntimeError:  # damaged; reading it reports which records
        sample = []
    size = sum(len(value) for row in sample for value in row.values() if isinstance(value, str | bytes))
    size = max(1, size * count // max(len(sample), 1))
    return [Slice("records", source.text, records.name, size, 0, count, source)]


def read(piece: Slice, report: Report) -> Iterator[Row]:
    """Rows [start, stop) of a data set; the origin is NAME@SPLIT#ROW."""
    records, source = open_records(piece.file), piece.source
    fields = [name for name in dict.fromkeys((*source.column, source.group)) if name]
    wanted = (i for i in range(piece.start, piece.stop) if piece.needs_row(f"{piece.origin}#{i}"))
    size = max(1, min(1024, BATCH * (piece.stop - piece.start) // piece.size))
    while numbers := list(islice(wanted, size)):
        try:
            batch = list(zip(numbers, records.read(numbers, fields)))
        except RuntimeError:
            batch = list(_one_by_one(records, numbers, fields, piece.origin, report))
        for number, row in batch:
            yield f"{piece.origin}#{number}", row


def _one_by_one(records: Records, numbers, fields, origin: str, report: Report) -> Iterator[tuple[int, Mapping]]:
    for number in numbers:
        try:
            yield number, records.read([number], fields)[0]
        except RuntimeError:
            report.note("damaged record", f"{origin}#{number}")


@lru_cache(8)
def open_records(text: str) -> Records:
    """The data set that a source names. It stays open, because opening takes longer than reading a slice."""
    if text.startswith(HF):
        return _hugging_face(text)
    return _tensorflow(text if text.startswith(TFDS) else TFDS + text)


# ---- TensorFlow Datasets ----


def _tensorflow(text: str) -> Records:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    name, _, split = text.removeprefix(TFDS).partition("@")
    folder = Path(name).expanduser()
    if is_prepared(folder):
        builder = tfds.builder_from_directory(folder)
    elif folder.is_absolute() or name.startswith((".", "~")):
        versions = ", ".join(str(version) for version in sorted(folder.glob("*")) if is_prepared(version))
        wanted = f"wanted one version of it: {versions or 'none there'}"
        raise ValueError(f"{folder} is not a prepared TFDS data set; {wanted}")
    else:
        try:  # from its files only: the code of a data set may be missing, or need TensorFlow
            builder = read_only_builder.builder_from_files(name)
        except tfds.core.DatasetNotFoundError:
            where = f"{tfds.core.constants.DATA_DIR} (TFDS_DATA_DIR names another folder)"
            raise ValueError(f"no prepared TFDS data set {name!r} in {where}. {_advice(name)}") from None
    split = split or "train"
    try:
        source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError:
        stored = f"{builder.data_dir} is stored as {builder.info.file_format.value}"
        raise ValueError(f"{stored}, which cannot be read by row number. {_advice(builder.name)}") from None
    features = builder.info.features

    def read(numbers: list[int], fields: list[str]) -> list[Mapping]:
        # decode these fields only: an image would need more libraries
        decoder = tfds.features.FeaturesDict({name: features[name] for name in fields})
        return [decoder.deserialize_example_np(record) for record in source.__getitems__(numbers)]

    name = f"{TFDS}{builder.info.full_name}@{split}"
    return Records(name, os.fspath(builder.data_dir), tuple(features), len(source), read)


def _advice(name: str) -> str:
    """How to prepare a TFDS data set so that qwenjax can read it."""
    build = f"tfds.builder('{name}', file_format='array_record').download_and_prepare(file_format='array_record')"
    return f'Prepare it once, if need be with TensorFlow: python -c "import tensorflow_datasets as tfds; {build}"'


# ---- Hugging Face ----


def _hugging_face(text: str) -> Records:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{text} needs the `datasets` library: pip install 'qwenjax[hf]'") from None
    path, _, split = text.removeprefix(HF).partition("@")
    path, _, configuration = path.partition("#")
    folder, split = Path(path).expanduser(), split or "train"
    try:
        if (folder / "state.json").is_file():  # save_to_disk of one split
            dataset = datasets.load_from_disk(folder)
            if split != "train":
                raise ValueError(f"{folder} is one data set without splits; leave out @{split}")
        elif (folder / "dataset_dict.json").is_file():
            dataset = datasets.load_from_disk(folder)
            if split not in dataset:
                raise ValueError(f"{folder} has no split {split!r}; it has: {', '.join(dataset)}")
            dataset = dataset[split]
        else:
            dataset = datasets.load_dataset(path, configuration or None, split=split)
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(f"{text}: {error}") from error
    name = folder.name if folder.is_dir() else path
    name += f"#{configuration}" * bool(configuration)

    def read(numbers: list[int], fields: list[str]) -> list[Mapping]:
        columns = dataset.select_columns(fields)[numbers]  # decode these only
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    files = dataset.cache_files
    path = files[0]["filename"] if files else ""
    return Records(f"{HF}{name}@{split}", path, tuple(dataset.features), len(dataset), read)
