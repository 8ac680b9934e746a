"""`python -m qwenjax.train`: every training stage. Parses, then calls `loop.fit`."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from qwenjax import cli

EPILOG = """examples:
  python -m qwenjax.train --exp=quickstart
      train a small Qwen on this machine's Python library, in minutes, without any download
  python -m qwenjax.train --exp=mid --set data.sources.0.text=books/ --workdir=runs/books
      a larger model on any folder, .jsonl, .jsonl.gz or .txt of yours
  python -m qwenjax.train --exp=qwen14b --print-config
      the report's 14B recipe as JSON
  python -m qwenjax.train --exp=runs/books/config.json --set steps=2000 --set init_from=runs/books --workdir=runs/more
      go on from the parameters of a run, with a fresh optimizer and schedule

The same command resumes an interrupted run and ends as if it had not been interrupted.
QWENJAX_TRACEBACK=1 in the environment shows where an error came from.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m qwenjax.train",
        description="Train: pretraining now, every later stage through the same loop.",
        epilog=EPILOG + cli.CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.experiment_arguments(parser.add_argument, required=True)
    parser.add_argument("--workdir", metavar="DIR", help="where the run lives (default: runs/NAME)")
    parser.add_argument(
        "--data-root", default="data", metavar="DIR", help="where data made from text is kept (default: data)"
    )
    parser.add_argument("--profile", metavar="START:STOP", help="record these steps with the XLA profiler")
    parser.add_argument("--print-config", action="store_true", help="print the experiment as JSON and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    from qwenjax import config

    args = parse(argv)
    try:
        experiment = cli.experiment(args)
        profile = None
        if args.profile:
            start, colon, stop = args.profile.partition(":")
            if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
                raise ValueError(f"--profile={args.profile}: wanted START:STOP with START < STOP, e.g. 10:15")
            profile = int(start), int(stop)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.USAGE
    if args.print_config:
        print(json.dumps(config.to_dict(experiment), indent=2))
        return cli.DONE
    return train(experiment, args, profile)


def train(experiment, args: argparse.Namespace, profile: tuple[int, int] | None) -> int:
    """Runs the experiment and turns what can go wrong into a message and an exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs stack traces of what is raised to us anyway
    from qwenjax.train.memory import keep_freed_memory

    keep_freed_memory()  # before jax makes its threads
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "qwenjax" / "xla"))
    _join_other_processes()

    from qwenjax.checkpoint import SaveFailed
    from qwenjax.train import loop

    try:
        outcome = loop.fit(experiment, args.workdir, data_root=args.data_root, profile=profile)
    except (ValueError, FloatingPointError, loop.NonFinite, SaveFailed, OSError) as error:
        if os.environ.get("QWENJAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return cli.FAILED
    except KeyboardInterrupt:
        print("stopped at once; what was saved before is kept", file=sys.stderr)
        return cli.INTERRUPTED
    return cli.DONE if outcome.finished else cli.INTERRUPTED


def _join_other_processes() -> None:
    """Connects the processes of one run: named by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    found by jax itself on a TPU slice of several hosts."""
    import jax

    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        jax.distributed.initialize(address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"]))
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()


if __name__ == "__main__":
    sys.exit(main())
