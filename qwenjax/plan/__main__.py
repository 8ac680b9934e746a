"""Estimate what an experiment takes on a TPU slice: memory, time, days. Compiled here, before anyone rents one.

The step that `qwenjax.train` would run is compiled by the TPU compiler, which needs no TPU, for the topology: v4-128,
v5e-256, v5p-256, v6e-256, tpu7x-256 and the like (names of v4, v5p and tpu7x count two cores per chip), or a shape as
in v5p:4x4x8. If it compiles, it fits.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

from qwenjax.common import command_line
from qwenjax.common.command_line import DONE, FAILED, Usage, positive
from qwenjax.config import RL_TASKS
from qwenjax.config.lookup import experiment_arguments, experiment_from

EXAMPLES = """
examples:
  python -m qwenjax.plan --exp=qwen14b --topology=v5e-256
  python -m qwenjax.plan --exp=qwen14b --topology=v5p-256 --search
      micro-steps, recomputation and mesh: the most promising four that fit, compiled, and the quickest of them
  python -m qwenjax.plan --exp=qwen1b8 --topology=v6e-256 --price=2.70 --json > plan.json

A compilation takes one to three minutes and 2 GB of memory. Needs pip install 'qwenjax[tpu-aot]'.
"""


def arguments(add) -> None:
    """Declares the options."""
    experiment_arguments(add, required=True)
    add("--topology", required=True, metavar="NAME", help="slice to compile for, such as v5e-256")
    add("--slices", type=positive, default=1, metavar="N", help="slices, joined by the slower network (default: 1)")
    search = "try settings that learn the same; stop when N of them fit (default: 4)"
    add("--search", type=positive, nargs="?", const=4, metavar="N", help=search)
    add("--price", type=float, metavar="X", help="of a chip-hour, in any currency: adds what the run costs")
    add("--hlo", metavar="DIR", help="keep the compiled program's text here")
    add("--json", action="store_true", help="print numbers for machines")


def run(options: argparse.Namespace) -> int:
    """Compiles the experiment's programs and prints the plan."""
    from qwenjax.xla import hardware

    try:
        topology = hardware.parse_topology(options.topology, options.slices)
    except ValueError as error:
        raise Usage(str(error)) from None
    experiment = experiment_from(options)
    hardware.prepare_environment()
    from qwenjax.plan import report, search
    from qwenjax.plan.estimate import DoesNotFit, plan, plan_rl

    say = functools.partial(print, file=sys.stderr, flush=True)
    if experiment.task in RL_TASKS and (options.search or options.hlo or options.price is not None):
        raise Usage(f"--search, --hlo and --price are for a single program; {experiment.task} has several")
    say(f"compiling {experiment.name} for {topology.name}; each program takes one to three minutes")
    try:
        if experiment.task in RL_TASKS:
            costs = plan_rl(experiment, topology)
            print(json.dumps(report.rl_as_dict(costs), indent=1) if options.json else report.rl_text(costs))
            return DONE
        if options.search:
            best, compiled = search.search(experiment, topology, options.search, say)
            say(f"quickest of them: {best.settings}\n")
        else:
            compiled = plan(experiment, topology)
    except DoesNotFit as error:
        print(f"{experiment.name} does not fit on {topology.name}: {error}")
        if experiment.task not in RL_TASKS and not options.search:
            print(search.advice(experiment, topology))
        return FAILED
    if options.hlo:
        path = Path(options.hlo) / f"{experiment.name}-{topology.name.replace(':', '-')}.hlo.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(compiled.program.hlo.text)
        say(f"program in {path}")
    numbers = report.as_dict(compiled, options.price)
    print(json.dumps(numbers, indent=1) if options.json else report.text(compiled, options.price))
    return DONE


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.plan …`; returns its exit code."""
    return command_line.main_of("qwenjax.plan", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
