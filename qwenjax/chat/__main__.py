"""Talk with a chat model in the terminal, in the chat format of its files.

Answers appear as they are generated. When the history outgrows the window, the oldest turns are left out, as in the
released code. Lines of a pipe or file are questions, one after another; answers are on stdout, all else on stderr.
"""

import argparse
import signal
import sys
from collections.abc import Iterator

from qwenjax.api import options as shared
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
    add("--system", metavar="TEXT", help="the system turn (default: that of the chat format, if it has one)")
    shared.sampling_arguments(add)


def run(options: argparse.Namespace) -> int:
    """Loads the model and talks until :exit, Ctrl-D or the end of the input."""
    from qwenjax.chat.session import Session

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # only Ctrl-C stops an answer
    model = shared.load_model(options)
    try:
        session = Session(model, options.system, options.seed, shared.sampling_options(options))
    except ValueError as error:
        raise command_line.Usage(str(error)) from None
    if not model.generation_defaults.chat:
        print("note: no chat template found; answers may be poor", file=sys.stderr)
    talk(session, read_lines())
    return command_line.DONE


def talk(session, lines: Iterator[str]) -> None:
    """Answers line after line."""
    from qwenjax.chat.session import Exit

    for line in lines:
        if not line.strip():
            continue
        try:
            reply = session.command(line)
            if reply is None:
                summary = session.answer(line.strip(), lambda text: print(text, end="", flush=True))
                print(flush=True)
                print(f"[{summary}]", file=sys.stderr)
            else:
                print(reply, flush=True)
        except Exit:
            return
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)


def read_lines() -> Iterator[str]:
    """The lines of stdin; on a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 (gives input() editing and a history)

    print(":help lists the commands", file=sys.stderr)
    while True:
        try:
            yield input("\n> ")
        except KeyboardInterrupt:
            print("\n(leave with :exit or Ctrl-D)", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return


if __name__ == "__main__":
    from qwenjax.chat import __main__ as command

    sys.exit(command_line.main_of("qwenjax.chat", command))
