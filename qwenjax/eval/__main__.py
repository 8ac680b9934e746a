"""Evaluate a model: a table of the report, or tasks by name, beside what was published.

--table=3       perplexity of a long text by context length, with dynamic NTK, LogN and layer windows switched on one
                after the other, where the text is longer than what the model was trained on
--table=4       how often a reward model puts the responses of preference sets in the right order
--tasks=passkey a number hidden in a long text: found or not, by depth and length
--tasks=entropy how widely attention looks, by length

Prints a table; --out gets it as .txt, .json and .png. Finished parts are kept there: after an interruption the same
command goes on.
"""

import argparse
import sys

from qwenjax.api import options as model_options
from qwenjax.common import command_line

EXAMPLES = f"""{model_options.MODEL}
examples:
  python -m qwenjax.eval --model=Qwen-7B --table=3 --text=book.txt
  python -m qwenjax.eval --model=SmolLM2.gguf --table=3 --text=book.txt --lengths=2048,8192,16384 --tokens=16384
  python -m qwenjax.eval --model=runs/tiny_rm --table=4 --data pairs.jsonl helpful-base/test.jsonl.gz
  python -m qwenjax.eval --model=Qwen-7B-Chat --tasks=passkey --lengths=4096,8192,16384 --depths=11 --trials=5
  python -m qwenjax.eval --model=SmolLM2.gguf --tasks=passkey --lengths=8192,16384 --set ntk=true --set logn=true
"""


def arguments(add) -> None:
    """Declares the options."""
    model_options.model_arguments(add)
    add("--table", metavar="N", help="a table of the report: 3 or 4")
    add("--tasks", default="", metavar="A,B", help="tasks by name: passkey, entropy")
    add("--text", default="", metavar="FILE", help="plain text, for perplexities and entropy")
    add("--data", nargs="+", action="extend", metavar="FILE", help="preferences, as `qwenjax.data convert` reads them")
    add("--lengths", type=_numbers, metavar="N,N,…", help="in tokens (default: 1024, 2048, … 32768)")
    number = {"type": command_line.positive, "metavar": "N"}
    add("--tokens", **number, help="tokens of the text to read at each length (default: the greatest length)")
    add("--depths", **number, help="positions of the passkey in a text (default: 5)")
    add("--trials", **number, help="passkey texts for each length and depth (default: 2)")
    add("--seed", type=command_line.natural, metavar="N", help="of the random passkeys (default: 0)")
    add("--out", metavar="DIR", help="where results go (default: runs/eval-MODEL)")


def run(options: argparse.Namespace) -> int:
    """Runs the tasks one after the other and prints each result."""
    from qwenjax.eval import task

    try:
        given = {name: getattr(options, name) for name in task.Settings.__dataclass_fields__}
        given["data"] = tuple(dict.fromkeys(given["data"] or ()))
        settings = task.Settings(**{name: value for name, value in given.items() if value})
        names = [f"table{options.table}"] if options.table else []
        names += [name.strip() for name in options.tasks.split(",") if name.strip()]
        kinds = {task.find_task(name).MODEL for name in names}
    except ValueError as error:
        raise command_line.Usage(str(error)) from None
    if not names:
        raise command_line.Usage("nothing to measure: give --table=3, --table=4 or --tasks=passkey,entropy")
    if len(kinds) > 1:
        raise command_line.Usage("--table=4 measures a reward model, the others a language model: run them apart")
    if "reward" in kinds and options.set:
        raise command_line.Usage("--set changes a language model's config; a reward model is read as it was trained")

    from qwenjax.common import storage

    out = storage.path(options.out or task.default_output(options.model))
    if "reward" in kinds:
        model = model_options.load_reward(options.model, options.dtype)
    else:
        model = model_options.load_model(options)
    opened_with = {"set": sorted(options.set), "dtype": model.compute.dtype}
    for name in names:
        evaluation = task.measure_and_save(model, options.model, name, settings, out, opened_with)
        print(evaluation.text, flush=True)
        print(f"also in {out / name}.txt, .json and .png", file=sys.stderr)
    return command_line.DONE


def _numbers(text: str) -> tuple[int, ...]:
    """Type of an option that is a list of whole numbers."""
    return tuple(command_line.positive(part.strip()) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(command_line.main_of("qwenjax.eval", sys.modules[__name__]))
