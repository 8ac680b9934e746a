"""The documents of token shards as a TensorFlow Datasets data set of text.

Features are `text`, decoded from the tokens, and `origin`. Splits are those of the shards, in their shuffled order.
Token ids are left out: they follow from the text and the tokenizer, and would double the size.
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
    """Writes OUT/NAME/1.0.0 in array_record format and returns that folder; a finished one is returned at once.

    `tfds.load(NAME, data_dir=OUT)`, `tfds.data_source` and `tfds.builder_from_directory` read it. The folder appears
    when it is complete; the next run removes what a killed one leaves. Memory does not grow with the text.

    Args:
      tokenizer: the one that the shards were written with; `decode` is used.
      name: of the data set, in snake_case.

    Raises:
      ValueError: another tokenizer, a name that TFDS does not take, or OUT/NAME holds another data set.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name {name!r}: TFDS names are in snake_case, such as my_corpus")
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
        for unfinished in folder.parent.glob(f"incomplete.*_{VERSION}"):
            shutil.rmtree(unfinished)
        _build(shards, tokenizer, out, name, progress)
    return folder


def _build(shards: Shards, tokenizer, out: Path, name: str, progress: bool) -> None:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    tokenizer_name = shards.index["tokenizer"]["name"]

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Does nothing: TFDS would look the name up in its bucket, and leave a temporary folder."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)
        code_path = None  # TFDS looks for checksums there, and needs one more library for it

        def _info(self) -> tfds.core.DatasetInfo:
            return Info(
                builder=self,
                description=f"{name}: documents decoded from tokens of the tokenizer {tokenizer_name!r}.",
                features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "origin": tfds.features.Text()}),
                metadata=tfds.core.MetadataDict(shards=_content(shards), tokenizer=shards.index["tokenizer"]),
                disable_shuffling=True,  # they are shuffled already
            )

        def _split_generators(self, _) -> dict[str, Iterator]:
            counts = {split: shards.index["splits"][split]["documents"] for split in SPLITS}
            return {split: self._generate_examples(split, count) for split, count in counts.items() if count}

        def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
            with meter(f"publishing {split}", count, hidden=not progress) as step:
                for i, (span, tokens) in enumerate(shards.all_documents(split)):
                    yield i, {"text": tokenizer.decode(tokens[:-1].tolist()), "origin": span.origin}
                    step(1)

        def _download_and_prepare(self, dl_manager, download_config) -> None:
            """Writes examples as they are generated.

            TFDS's own writer sorts them by hash, holds up to 1 GB of them, and needs TensorFlow beyond that.
            """
            splits = self._split_generators(dl_manager)
            self.info.set_splits(tfds.core.SplitDict([self._write(*split) for split in splits.items()]))

        def _write(self, split: str, examples: Iterator[tuple[int, dict]]) -> tfds.core.SplitInfo:
            entry = shards.index["splits"][split]
            files, size = min(entry["documents"], math.ceil(entry["bytes"] / FILE_BYTES)), 0
            template = tfds.core.ShardedFileTemplate(
                self.data_path, dataset_name=name, split=split, filetype_suffix="array_record"
            )
            edges = [entry["documents"] * f // files for f in range(files + 1)]
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
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about downloads
        Builder(data_dir=str(out), file_format="array_record").download_and_prepare(file_format="array_record")


def _content(shards: Shards) -> str:
    """A hash of what the shards hold: of the CRCs in their index."""
    return json_digest(shards.index["splits"])
