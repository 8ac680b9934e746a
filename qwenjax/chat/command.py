"""Talks with a chat model in the terminal, in ChatML.

Answers appear as they come. When the history outgrows the window, its oldest turns are left out, as in the released
code. Lines from a pipe or file are asked one after another; answers are on stdout, everything else on stderr.
"""

import argparse
import signal
import sys
from collections.abc import Iterator

from qwenjax.api import options as shared
from qwenjax.chat_format.chatml import SYSTEM
from qwenjax.common import command_line

EXAMPLES = f"""{shared.MODEL}
examples:
  python -m qwenjax.chat --model=Qwen-1_8B-Chat
  python -m qwenjax.chat --model=SmolLM2-135M-Instruct.gguf --temperature=0.7 --system='You answer in one sentence.'
  python -m qwenjax.chat --model=Qwen-7B-Chat-Int4 --set ntk=true --set logn=true --dtype=bfloat16
  echo 'What is the capital of France?' | python -m qwenjax.chat --model=SmolLM2-135M-Instruct.gguf

In the conversation, :help lists the commands: :clear, :history, :seed, :conf, :exit
"""


def arguments(add) -> None:
    """Declares the options."""
    shared.model_arguments(add)
    add("--system", default=SYSTEM, metavar="TEXT", help=f"the system turn (default: {SYSTEM!r})")
    shared.sampling_arguments(add)


def run(options: argparse.Namespace) -> int:
    """Loads the model and talks until :exit, Ctrl-D or the end of the input."""
    from qwenjax.chat.session import Session

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # only Ctrl-C stops an answer
    model = shared.load_model(options)
    asked = {key: getattr(options, key) for key in (*shared.SAMPLING, "max_new_tokens")}
    try:
        session = Session(model, options.system, options.seed, {k: v for k, v in asked.items() if v is not None})
    except ValueError as error:
        raise command_line.Usage(str(error)) from None
    if not model.habits.chat:
        print("note: nothing beside the weights says that this model was trained to chat", file=sys.stderr)
    talk(session, lines())
    return command_line.DONE


def talk(session, asked: Iterator[str]) -> None:
    """Answers line after line."""
    from qwenjax.chat.session import Left

    for line in asked:
        if not line.strip():
            continue
        try:
            said = session.command(line)
            if said is None:
                told = session.answer(line.strip(), lambda text: print(text, end="", flush=True))
                print(flush=True)
                print(f"[{told}]", file=sys.stderr)
            else:
                print(said, flush=True)
        except Left:
            return
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)


def lines() -> Iterator[str]:
    """What is typed, with a prompt and editing on a terminal; else the lines of stdin."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 (input then has editing and earlier lines)

    print(":help lists the commands", file=sys.stderr)
    while True:
        try:
            yield input("\n> ")
        except KeyboardInterrupt:
            print("\n(:exit or Ctrl-D leaves)", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return
