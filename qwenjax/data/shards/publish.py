"""The documents of token shards as a TensorFlow Datasets data set: text again, for anybody who reads TFDS.

Features are `text`, decoded from the tokens, and `origin`; splits are those of the shards, in their (shuffled) order.
The ids are left out: they are a function of the text and the tokenizer, and would double the size.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

from qwenjax.common.hashing import json_digest
from qwenjax.common.progress import meter, printer
from qwenjax.common.storage import exclusive
from qwenjax.data.shards.format import SPLITS, Shards

VERSION = "1.0.0"
FILE_BYTES = 256 << 20  # text per output file


def publish(shards: Shards, tokenizer, out: str | Path, name: str, progress: bool = True) -> Path:
    """Writes OUT/NAME/1.0.0 in array_record format; returns that folder, at once if it was there.

    `tfds.load(NAME, data_dir=OUT)`, `tfds.data_source` and `tfds.builder_from_directory` read it. The folder appears
    when it is complete; what a killed run leaves behind is removed by the next. Memory does not grow with the text.

    Args:
      tokenizer: with `decode`; the one the shards were written with.
      name: of the data set, in snake_case.

    Raises:
      ValueError: another tokenizer, a name that TFDS does not take, or OUT/NAME holds another data set.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name {name!r}: TFDS wants snake_case, such as my_corpus")
    shards.check_tokenizer(tokenizer)
    out = Path(out)
    folder = out / name / VERSION
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(out, printer(progress)):
        if folder.is_dir():
            about = folder / "metadata.json"
            if not about.is_file() or json.loads(about.read_text("utf-8")).get("shards") != _content(shards):
                raise ValueError(f"{folder} holds another data set; choose another --name or --out, or delete it")
            return folder
        for left in folder.parent.glob(f"incomplete.*_{VERSION}"):
            shutil.rmtree(left)
        _build(shards, tokenizer, out, name, progress)
    return folder


def _build(shards: Shards, tokenizer, out: Path, name: str, progress: bool) -> None:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    made_with = shards.index["tokenizer"]["name"]

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Nobody is asked whether TFDS has published this name, and no temporary folder stays behind."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)
        code_path = None  # there are no checksums beside this file, and looking for them takes one more library

        def _info(self) -> tfds.core.DatasetInfo:
            return Info(
                builder=self,
                description=f"{name}: documents decoded from tokens of the tokenizer {made_with!r}.",
                features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "origin": tfds.features.Text()}),
                metadata=tfds.core.MetadataDict(shards=_content(shards), tokenizer=shards.index["tokenizer"]),
                disable_shuffling=True,  # they are shuffled already
            )

        def _split_generators(self, _) -> dict[str, Iterator]:
            held = {split: shards.index["splits"][split]["documents"] for split in SPLITS}
            return {split: self._generate_examples(split, count) for split, count in held.items() if count}

        def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
            with meter(f"publishing {split}", count, hidden=not progress) as step:
                for i, (span, tokens) in enumerate(shards.all_documents(split)):
                    yield i, {"text": tokenizer.decode(tokens[:-1].tolist()), "origin": span.origin}
                    step(1)

        def _download_and_prepare(self, dl_manager, download_config) -> None:
            """Writes what is generated as it comes.

            The writer in its place sorts records by hash, holds up to 1 GB of them, and beyond that needs TensorFlow.
            """
            splits = self._split_generators(dl_manager)
            self.info.set_splits(tfds.core.SplitDict([self._write(*split) for split in splits.items()]))

        def _write(self, split: str, examples: Iterator[tuple[int, dict]]) -> tfds.core.SplitInfo:
            held = shards.index["splits"][split]
            files, size = min(held["documents"], math.ceil(held["bytes"] / FILE_BYTES)), 0
            template = tfds.core.ShardedFileTemplate(
                self.data_path, dataset_name=name, split=split, filetype_suffix="array_record"
            )
            edges = [held["documents"] * f // files for f in range(files + 1)]
            for f, (start, stop) in enumerate(pairwise(edges)):
                path = template.sharded_filepath(shard_index=f, num_shards=files)
                writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
                for _, example in islice(examples, stop - start):
                    record = self.info.features.serialize_example(example)
                    writer.write(record)
                    size += len(record)
                writer.close()
            lengths = [stop - start for start, stop in pairwise(edges)]
            return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)

    Builder.name = name
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloads
        Builder(data_dir=str(out), file_format="array_record").download_and_prepare(file_format="array_record")


def _content(shards: Shards) -> str:
    """A hash of what the shards hold, through the CRCs in their index."""
    return json_digest(shards.index["splits"])
