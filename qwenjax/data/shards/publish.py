"""The documents of token shards as a TensorFlow Datasets data set of text.

Features are `text`, decoded from the tokens, and `origin`. Splits are those of the shards, in their shuffled order.
Token ids are left out: they follow from the text and the tokenizer, and would double the size.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from qwenjax.common.hashing import json_digest
from qwenjax.common.progress import meter, printer
from qwenjax.common.storage import exclusive
from qwenjax.data.shards.format import SPLITS, Shards

VERSION = "1.0.0"
FILE_BYTES = 256 << 20  # text per output file, about


def publish(shards: Shards, tokenizer, out: str | Path, name: str, progress: bool = True) -> Path:
    """Writes OUT/NAME/1.0.0 in array_record format and returns that folder; a finished one is returned at once.

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
        for unfinished in folder.parent.glob("incomplete.*"):
            shutil.rmtree(unfinished)
        with TemporaryDirectory(dir=folder.parent, prefix="incomplete.") as temporary:
            (working := Path(temporary, VERSION)).mkdir()
            _build(shards, tokenizer, working, name, progress)
            working.rename(folder)
    return folder


def _build(shards: Shards, tokenizer, folder: Path, name: str, progress: bool) -> None:
    import tensorflow_datasets as tfds

    documents = sum(shards.index["splits"][split]["documents"] for split in SPLITS)
    text_bytes = sum(map(shards.text_bytes, SPLITS))
    identity = tfds.core.dataset_info.DatasetIdentity(name, tfds.core.Version(VERSION), str(folder), module_name="")
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=f"{name}: documents decoded from tokens of the tokenizer {shards.tokenizer['name']!r}.",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "origin": tfds.features.Text()}),
        metadata=tfds.core.MetadataDict(shards=_content(shards), tokenizer=shards.tokenizer),
        disable_shuffling=True,  # they are shuffled already
    )
    # not a builder's writer: that sorts examples by hash, holds up to 1 GB of them, and then needs TensorFlow
    writer = tfds.core.SequentialWriter(info, max(1, documents * FILE_BYTES // text_bytes), file_format="array_record")

    def examples(split: str) -> Iterator[dict[str, str]]:
        for span, tokens in shards.all_documents(split):
            yield {"text": tokenizer.decode(tokens[:-1].tolist()), "origin": span.origin}
            step(1)

    with meter(f"publishing {name}", documents, hidden=not progress) as step:
        for split in SPLITS:
            if shards.index["splits"][split]["documents"]:
                writer.initialize_splits([split])
                writer.add_examples({split: examples(split)})
    writer.close_all()


def _content(shards: Shards) -> str:
    """A hash of what the shards hold: of the CRCs in their index."""
    return json_digest(shards.index["splits"])
