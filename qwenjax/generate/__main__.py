"""Complete prompts on the screen, or every row of a JSONL file into another file.

Every row of the file has "prompt", a text, or "messages", a conversation [{"role": "user", "content": …}]. It may have
its own "seed". The output repeats the row and adds completion, reason (stop or length), tokens and logprob; or error,
for a row that the model cannot answer (exit code 1). After an interruption the same command continues behind the last
complete row.

With --reward and --best-of a chat model answers each prompt several times, and the answer with the best score is shown;
the file also has all scores.
"""

import argparse
import sys
import time
from pathlib import Path

from qwenjax.api import options as shared
from qwenjax.common import command_line, jsonl, progress

EXAMPLES = f"""{shared.MODEL}
examples:
  python -m qwenjax.generate --model=runs/quickstart 'def main(' --max-new-tokens=64
  python -m qwenjax.generate --model=Qwen-1_8B 'The capital of France is' --temperature=0
  python -m qwenjax.generate --model=runs/tiny_sft --reward=runs/tiny_rm --best-of=8 --temperature=1 'Who are you?'
  python -m qwenjax.generate --model=SmolLM2.gguf --jsonl=questions.jsonl --out=answers.jsonl --batch=16 --stop='\\n\\n'
"""


def arguments(add) -> None:
    """Declares the options."""
    add("prompt", nargs="*", metavar="PROMPT", help="texts to continue; - reads one from stdin")
    shared.model_arguments(add)
    add("--jsonl", metavar="FILE", help="complete the rows of this file instead of prompts")
    add("--out", metavar="FILE", help="write their completions to this file")
    add("--batch", type=command_line.positive, default=8, metavar="N", help="rows completed at a time (default: 8)")
    add("--reward", metavar="PATH", help="the run of a reward model, which scores the answers")
    add("--best-of", type=command_line.positive, metavar="N", help="number of answers to choose from")
    shared.sampling_arguments(add)
    add("--stop", action="append", default=[], metavar="TEXT", help="ends a completion; \\n is a line end; repeatable")


def run(options: argparse.Namespace) -> int:
    """Completes; results are on stdout or in --out."""
    if bool(options.prompt) == bool(options.jsonl) or bool(options.jsonl) != bool(options.out):
        raise command_line.Usage("wanted PROMPT…, or --jsonl=FILE with --out=FILE")
    if bool(options.reward) != bool(options.best_of):
        raise command_line.Usage("--reward=PATH and --best-of=N go together: who chooses, and among how many")
    stop = tuple(text.replace("\\n", "\n") for text in options.stop)
    return _file(options, stop) if options.jsonl else _screen(options, stop)


def _screen(options: argparse.Namespace, stop: tuple[str, ...]) -> int:
    prompts = [sys.stdin.read() if text == "-" else text for text in options.prompt]
    model = shared.load_model(options)
    sampling, limit = shared.sampling(options, model)
    if options.best_of:
        return _best(options, stop, model, sampling, limit, prompts)
    for i, prompt in enumerate(prompts):
        print(prompt, end="", flush=True)
        begin, seeds = time.perf_counter(), [options.seed + i]
        show = lambda row, text: print(text, end="", flush=True)  # noqa: E731
        (completion,) = model.complete([prompt], sampling, limit, stop, seeds, show)
        print(flush=True)
        n, seconds = len(completion.ids), time.perf_counter() - begin
        print(f"{n} tokens, {n / seconds:.1f} a second, ended by {completion.reason}", file=sys.stderr)
    return command_line.DONE


def _best(options: argparse.Namespace, stop: tuple[str, ...], model, sampling, limit: int, prompts: list[str]) -> int:
    from qwenjax.api import best_of

    chooser = best_of.BestOf(shared.load_reward(options.reward, options.dtype), options.best_of)
    for i, prompt in enumerate(prompts):
        conversation = best_of.conversation(model, {"prompt": prompt})
        best = chooser.answers(model, [conversation], sampling, limit, stop, [options.seed + i])[0]
        print(best.completion.text, flush=True)
        score, mean = best.scores[best.index], sum(best.scores) / chooser.n
        print(
            f"answer {best.index + 1} of {chooser.n}, {best.ended} of which ended; score {score:.3f}, mean {mean:.3f}; "
            f"best-of-{chooser.n} is up to {best_of.divergence(chooser.n):.2f} nats (KL) from the policy",
            file=sys.stderr,
        )
    return command_line.DONE


def _file(options: argparse.Namespace, stop: tuple[str, ...]) -> int:
    from qwenjax.api import best_of, jsonl_jobs

    rows, out = jsonl_jobs.read_requests(options.jsonl), Path(options.out)
    model = shared.load_model(options)
    job = jsonl_jobs.CompletionJob(*shared.sampling(options, model), stop, options.seed, options.batch)
    made_by = f"{options.model} {options.set} {options.dtype} {options.kv_cache} {options.frozen_ntk}"
    chooser = None
    if options.best_of:
        chooser = best_of.BestOf(shared.load_reward(options.reward, options.dtype), options.best_of)
        chooser.check(model, job.sampling)
        made_by += f" best of {chooser.n} by {chooser.reward_model.saved.fingerprint}"
    digest = job.digest(made_by)
    done = jsonl_jobs.resume(out, rows, digest)
    if done:
        print(f"{done} of {len(rows)} rows are done", file=sys.stderr)
    with progress.meter("completing", len(rows) - done, "row") as step:
        tokens = jsonl_jobs.run(model, rows, done, job, digest, out, step, chooser)
    print(f"{out} is complete: {len(rows)} rows, {tokens} new tokens")
    if failed := sum("error" in row for row in jsonl.read_rows(out)):
        print(f"error: {failed} of {len(rows)} rows could not be answered; their `error` says why", file=sys.stderr)
        return command_line.FAILED
    return command_line.DONE


if __name__ == "__main__":
    from qwenjax.generate import __main__ as command  # the package has no command.py: its command is this file

    sys.exit(command_line.main_of("qwenjax.generate", command))
