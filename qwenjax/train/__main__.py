"""Train, in every stage: pretraining, fine-tuning, reward models, DPO, PPO, GRPO, REINFORCE."""

import argparse
import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path

from qwenjax.common import command_line, progress, storage
from qwenjax.common.processes import keep_freed_memory, quiet_logs
from qwenjax.config import lookup

EXAMPLES = """examples:
  python -m qwenjax.train --exp=quickstart
      train a small Qwen on this machine's Python library, in minutes, without any download
  python -m qwenjax.train --exp=mid --set data.sources.0.text=books/ --workdir=runs/books
      a larger model on any folder, .jsonl, .jsonl.gz or .txt of yours
  python -m qwenjax.train --exp=tiny_sft --set init_from=runs/quickstart --set chat.files.0.path=chat.jsonl
      supervised fine-tuning on dialogues; tiny_rm and tiny_ppo come next (docs/alignment.md)
  python -m qwenjax.train --exp=qwen14b --coordinator=10.0.0.2:8476 --processes=4 --process=0 --restarts=100
      one process of four, restarted after crashes (on a TPU slice, SLURM and Open MPI leave out the first three flags)
  python -m qwenjax.train --exp=qwen14b --profile=10:15 --profiler-port=9012
      record steps 11 to 15, for `python -m qwenjax.profile runs/qwen14b`; later, have xprof attach to localhost:9012

The same command resumes an interrupted run and ends as if it had not been interrupted.
QWENJAX_TRACEBACK=1 in the environment shows where an error came from.
"""


MODEL_FROM = "model=init_from"


def arguments(add) -> None:
    """Declares the options."""
    lookup.experiment_arguments(add, required=True)
    add("--workdir", metavar="DIR", help="where the run lives (default: runs/NAME)")
    add("--data-root", default="data", metavar="DIR", help="where data made from text is kept (default: data)")
    text = "record the steps after START until STOP with the XLA profiler"
    add("--profile", type=_steps, metavar="START:STOP", help=text)
    text = "let a profiler attach to this port of every process's machine at any time"
    add("--profiler-port", type=command_line.positive, metavar="PORT", help=text)
    text = "a step longer than this counts as hung: print all stacks, then give up"
    text += " (default: 20 x the median step, at least 10 minutes; 0: never)"
    add("--watchdog", type=float, metavar="SECONDS", help=text)
    text = "start again after a crash or preemption, up to N times"
    add("--restarts", type=command_line.natural, default=0, metavar="N", help=text)
    text = "address of process 0 of several (JAX_COORDINATOR_ADDRESS); detected on TPU slices, SLURM and Open MPI"
    add("--coordinator", metavar="HOST:PORT", help=text)
    add("--processes", type=command_line.positive, metavar="N", help="how many there are (JAX_NUM_PROCESSES)")
    text = "the number of this one, from 0 (JAX_PROCESS_ID)"
    add("--process", type=command_line.natural, metavar="I", help=text)
    text = "how long to wait for the others at the start (QWENJAX_PEER_TIMEOUT; default: 300)"
    wait = float(os.environ.get("QWENJAX_PEER_TIMEOUT", 300))
    add("--peer-timeout", type=float, default=wait, metavar="SECONDS", help=text)
    add("--print-config", action="store_true", help="print the experiment as JSON and stop")


def _steps(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"{text}: wanted START:STOP with START < STOP, e.g. 10:15")
    return int(start), int(stop)


def run(options: argparse.Namespace) -> int:
    """Trains, or with --restarts starts processes that do."""
    from qwenjax import config
    from qwenjax.train.operations import launchers, restarts

    experiment = _experiment(options)
    if options.print_config:
        print(json.dumps(config.to_dict(experiment), indent=2), flush=True)
        return command_line.DONE
    try:
        rank = launchers.find(options.coordinator, options.processes, options.process)
        workdir = storage.path(options.workdir or f"runs/{experiment.name}")
    except ValueError as error:
        raise command_line.Usage(str(error)) from None
    if (options.profiler_port or 0) > 65535:
        raise command_line.Usage(f"--profiler-port={options.profiler_port}: wanted 1 to 65535")
    if options.restarts and not os.environ.get(restarts.CHILD):
        return restarts.supervise(options.argv, options.restarts, workdir)
    return train(experiment, options, workdir, rank)


def _experiment(options: argparse.Namespace):
    """The experiment of the options. `--set model=init_from` takes the model of the checkpoint that it starts from."""
    others = [item for item in options.set if item != MODEL_FROM]
    if len(others) == len(options.set):
        return lookup.experiment_from(options)
    from qwenjax.api.checkpoint_path import detect

    options.set = [item for item in others if item.startswith("init_from=")]
    path = lookup.experiment_from(options).init_from
    if not path:
        raise command_line.Usage(f"--set {MODEL_FROM} needs a model to take: --set init_from=PATH")
    options.set = [f"model={json.dumps(dataclasses.asdict(detect(path).config))}", *others]
    return lookup.experiment_from(options)


def train(experiment, options: argparse.Namespace, workdir: Path, rank) -> int:
    """Runs the experiment, and turns its errors into messages and exit codes."""
    quiet_logs()
    keep_freed_memory()  # before jax makes its threads
    if options.profile is None:  # a program from the cache leaves no names in a trace
        command_line.keep_programs()
    from qwenjax.train.operations import distributed, restarts

    try:
        peers = distributed.join(rank, options.peer_timeout, progress.printer())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return restarts.exit_code(restarts.PERMANENT if isinstance(error, ValueError) else restarts.PEERS_LOST)

    from qwenjax.checkpoint import SaveFailed
    from qwenjax.train import loop
    from qwenjax.train.operations import profiler, spikes
    from qwenjax.train.rl.reward_function import RewardFailed

    try:
        if options.profiler_port:
            profiler.serve(options.profiler_port)
        settings = {"data_root": options.data_root, "profile": options.profile, "watchdog": options.watchdog}
        outcome = loop.fit(experiment, workdir, **settings)
    except (ValueError, FloatingPointError, spikes.Diverged, RewardFailed, SaveFailed, OSError) as error:
        if os.environ.get("QWENJAX_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        permanent = isinstance(error, spikes.Diverged)
        permanent = permanent or (isinstance(error, ValueError) and not restarts.began(workdir))
        return peers.leave(restarts.exit_code(restarts.PERMANENT if permanent else command_line.FAILED))
    except KeyboardInterrupt:
        print("stopped at once; earlier checkpoints are kept", file=sys.stderr)
        return peers.leave(command_line.INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return peers.leave(command_line.FAILED)
    peers.goodbye()
    return command_line.DONE if outcome.finished else command_line.INTERRUPTED


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command_line.main_of("qwenjax.train", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
