"""The documents of token shards as a TensorFlow Datasets data set (array_record).

The text is decoded from the tokens. Splits are train and validation, features `text` and `origin`. A finished data set
is kept. A killed run leaves nothing that looks finished, and the same command starts again.
"""

import argparse

from qwenjax.common.command_line import DONE

EXAMPLES = """
examples:
  python -m qwenjax.data publish shards/web --out=published --name=web
  python -c "import tensorflow_datasets as tfds; print(tfds.data_source('web', data_dir='published', split='train')[0])"
  python -m qwenjax.data tokenize tfds:published/web/1.0.0@train --out=shards/again
"""


def arguments(add) -> None:
    """Declares the options."""
    add("shards", metavar="SHARDS", help="folder written by `python -m qwenjax.data tokenize`")
    add("--out", required=True, metavar="DIR", help="the data_dir of TFDS: the result is DIR/NAME/1.0.0")
    add("--name", metavar="NAME", help="of the data set, in snake_case (default: the name of SHARDS)")


def run(options: argparse.Namespace) -> int:
    """Publishes, then prints where it is."""
    import tensorflow_datasets as tfds

    from qwenjax.data.shards.format import Shards
    from qwenjax.data.shards.publish import publish
    from qwenjax.tokenizer import load_tokenizer

    tfds.disable_progress_bar()  # `publish` has its own
    shards = Shards(options.shards)
    tokenizer = load_tokenizer(str(shards.directory / "tokenizer"))
    name = options.name or shards.directory.resolve().name.lower().replace("-", "_")
    print(f"{publish(shards, tokenizer, options.out, name)} is complete")
    return DONE
