"""Alignment experiments: SFT, reward models and PPO on people's ratings, with claims that hold or not.

Experiment A makes texts more positive, with and without the pretraining loss and with shuffled scores as a control;
two reward models and a lexicon that the policy never learnt from score it. Experiment B is the report's whole path,
with preference-model pretraining and the report's settings of PPO, for texts of a direction that is asked for.
Experiment C takes a real model, SmolLM2-135M-Instruct, through SFT, a reward model and GRPO with adapters.
Every stage is a `python -m qwenjax.train`; what is finished in the workdir is not run again. Exit code 1 if a claim
fails.
"""

import argparse
import sys

from qwenjax.common import command_line

EXAMPLES = """
examples:
  python -m experiments.studies.alignment --data=ratings.jsonl.gz
      experiment A with three seeds
  python -m experiments.studies.alignment --data=ratings.jsonl.gz --seeds=0,1,2,3,4,5,6,7,8,9 --arms=ptx
      does every one of ten seeds improve
  python -m experiments.studies.alignment --data=ratings.jsonl.gz --experiment=B --png=B.png --json > B.json
  python -m experiments.studies.alignment --data=ratings.jsonl.gz --experiment=C --seeds=0 --model=SmolLM2.gguf \\
      --chat=alpaca.jsonl.gz --text=wiki.txt
"""


def numbers(text: str) -> list[int]:
    """Type of an option that lists whole numbers from 0."""
    parts = text.split(",")
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted different whole numbers, such as 0,1,2")
    return [int(part) for part in parts]


def arguments(add) -> None:
    """Declares the options."""
    add("--data", required=True, metavar="FILE", help="ratings.jsonl or .gz: {source, rating, text} a line")
    add("--experiment", choices=["A", "B", "C"], default="A", help="which one (default: A)")
    add("--seeds", type=numbers, default=[0, 1, 2], metavar="N,N", help="of all training (default: 0,1,2)")
    add("--arms", default="", metavar="NAME,NAME", help="of A: ptx, no_ptx, shuffled (default: all)")
    add("--model", metavar="PATH", help="of C: SmolLM2-135M-Instruct")
    add("--chat", metavar="FILE", help="of C: dialogues, in any form that `qwenjax.data convert` reads")
    add("--text", metavar="FILE", help="of C: plain text that SFT does not read")
    add("--workdir", default="runs/align", metavar="DIR", help="keeps everything (default: runs/align)")
    add("--png", metavar="FILE", help="draw the curves")
    add("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Trains, scores and prints."""
    import json
    from pathlib import Path

    from . import harness, outcome

    arms = [arm for arm in options.arms.split(",") if arm]
    name = options.experiment
    found = harness.find(name, model=options.model, chat=options.chat, text=options.text)
    result = harness.bench(name, found, Path(options.data), Path(options.workdir), options.seeds, arms)
    if options.png:
        outcome.draw(result["seeds"], Path(options.png))
    print(json.dumps(result, indent=2) if options.json else outcome.table(result))
    return command_line.DONE if all(claim["holds"] for claim in result["claims"]) else command_line.FAILED


if __name__ == "__main__":
    sys.exit(command_line.main_of("experiments.studies.alignment", sys.modules[__name__]))
