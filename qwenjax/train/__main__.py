"""Train, in every stage: pretraining, fine-tuning, reward models, DPO, PPO, GRPO, REINFORCE."""

import argparse
import json
import os
import sys
import traceback
from pathlib import Path

from qwenjax.common import command_line, storage
from qwenjax.common.processes import keep_freed_memory, quiet_logs
from qwenjax.config import lookup

EPILOG = """examples:
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


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m qwenjax.train",
        description=__doc__,
        epilog=EPILOG + command_line.CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lookup.experiment_arguments(parser.add_argument, required=True)
    parser.add_argument("--workdir", metavar="DIR", help="where the run lives (default: runs/NAME)")
    parser.add_argument(
        "--data-root", default="data", metavar="DIR", help="where data made from text is kept (default: data)"
    )
    parser.add_argument(
        "--profile", metavar="START:STOP", help="record the steps after START until STOP with the XLA profiler"
    )
    parser.add_argument(
        "--profiler-port",
        type=command_line.positive,
        metavar="PORT",
        help="let a profiler attach to this port of every process's machine at any time",
    )
    parser.add_argument(
        "--watchdog",
        type=float,
        metavar="SECONDS",
        help="a step longer than this counts as hung: print all stacks, then give up"
        " (default: 20 x the median step, at least 10 minutes; 0: never)",
    )
    parser.add_argument(
        "--restarts",
        type=command_line.natural,
        default=0,
        metavar="N",
        help="start again after a crash or preemption, up to N times",
    )
    group = parser.add_argument_group("several processes (detected on TPU slices, SLURM and Open MPI)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 (JAX_COORDINATOR_ADDRESS)")
    group.add_argument(
        "--processes", type=command_line.positive, metavar="N", help="how many there are (JAX_NUM_PROCESSES)"
    )
    group.add_argument(
        "--process", type=command_line.natural, metavar="I", help="the number of this one, from 0 (JAX_PROCESS_ID)"
    )
    group.add_argument(
        "--peer-timeout",
        type=float,
        default=float(os.environ.get("QWENJAX_PEER_TIMEOUT", 300)),
        metavar="SECONDS",
        help="how long to wait for the others at the start (QWENJAX_PEER_TIMEOUT; default: 300)",
    )
    parser.add_argument("--print-config", action="store_true", help="print the experiment as JSON and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    from qwenjax import config
    from qwenjax.train.operations import launchers, restarts

    args = parse(argv)
    try:
        experiment = lookup.experiment_from(args)
        profile = None
        if args.profile:
            start, _, stop = args.profile.partition(":")
            if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
                raise ValueError(f"--profile={args.profile}: wanted START:STOP with START < STOP, e.g. 10:15")
            profile = int(start), int(stop)
        if args.profiler_port and args.profiler_port > 65535:
            raise ValueError(f"--profiler-port={args.profiler_port}: wanted 1 to 65535")
        if args.print_config:
            print(json.dumps(config.to_dict(experiment), indent=2), flush=True)
            return command_line.DONE
        rank = launchers.find(args.coordinator, args.processes, args.process)
        workdir = storage.path(args.workdir or f"runs/{experiment.name}")
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return command_line.DONE
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return command_line.USAGE
    if args.restarts and not os.environ.get(restarts.CHILD):
        return restarts.supervise(sys.argv[1:] if argv is None else argv, args.restarts, workdir)
    return train(experiment, args, workdir, profile, rank)


def train(experiment, args: argparse.Namespace, workdir: Path, profile: tuple[int, int] | None, rank) -> int:
    """Runs the experiment, and turns its errors into messages and exit codes."""
    quiet_logs()
    keep_freed_memory()  # before jax makes its threads
    if profile is None:  # a program from the cache leaves no names in a trace
        command_line.keep_programs()
    from qwenjax.train.operations import distributed, restarts

    try:
        peers = distributed.join(rank, args.peer_timeout, lambda text: print(text, file=sys.stderr, flush=True))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return restarts.exit_code(restarts.PERMANENT if isinstance(error, ValueError) else restarts.PEERS_LOST)

    from qwenjax.checkpoint import SaveFailed
    from qwenjax.train import loop
    from qwenjax.train.operations import profiler, spikes
    from qwenjax.train.rl.reward_function import RewardFailed

    try:
        if args.profiler_port:
            profiler.serve(args.profiler_port)
        outcome = loop.fit(experiment, workdir, data_root=args.data_root, profile=profile, watchdog=args.watchdog)
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


if __name__ == "__main__":
    sys.exit(main())
