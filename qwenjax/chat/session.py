"""A conversation: its history, its settings, and the commands that begin with a colon."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

from qwenjax.chat_format import chatml
from qwenjax.config import overrides

HELP = """:help               show this list
:exit               leave (also Ctrl-D, exit and quit)
:clear              forget the conversation
:history            show the conversation
:seed N             seed of sampling; the same seed and questions give the same answers
:conf               show the settings
:conf KEY=VALUE …   change them: temperature (0 is greedy), top_p, top_k, repetition_penalty, max_new_tokens
:conf reset         back to those of the start
Ctrl-C stops an answer; what was written stays in the history."""
COMMANDS = ("help", "exit", "clear", "history", "seed", "conf")
KINDS = {"temperature": float, "top_k": int, "top_p": float, "repetition_penalty": float, "max_new_tokens": int}
# Tokens of system turn and history, if the release does not say: as generation_config.json of 7B-Chat and 14B-Chat
WINDOW = 6144


class Exit(Exception):
    """The user leaves."""


class Session:
    """One conversation with a `Model`."""

    def __init__(self, model: Any, system: str | None = None, seed: int = 0, settings: dict[str, Any] | None = None):
        """`system`: None is the default of the chat format. ValueError if the model does not chat, or for a setting."""
        model.vocabulary.check_chat()
        self.model, self.system, self.seed = model, system, seed
        self.initial = dict(settings or {})
        self.history: list[tuple[str, str]] = []  # queries and answers, oldest first
        self._set(self.initial)

    def _set(self, settings: dict[str, Any]) -> None:
        defaults, changes = self.model.generation_defaults, dict(settings)
        limit = changes.pop("max_new_tokens", defaults.max_new_tokens)
        if limit < 1:
            raise ValueError(f"max_new_tokens={limit}: wanted at least 1")
        self.sampling = defaults.sampler(**changes)
        self.settings, self.max_new_tokens = dict(settings), limit  # the release decides what is not set

    def command(self, line: str) -> str | None:
        """The reply to a line that begins with `:word`; None if the line is a question and no command.

        Raises Exit for :exit, and ValueError for a command or setting that is not understood.
        """
        if line.strip().lower() in ("exit", "quit"):
            raise Exit
        found = re.fullmatch(r":([a-z]+)(?:\s+(.*))?", line.strip(), flags=re.DOTALL)
        if not found:
            return None
        word, arguments = found[1], (found[2] or "").split()
        match word:
            case "help":
                return HELP
            case "exit":
                raise Exit
            case "clear":
                self.history.clear()
                return "forgotten"
            case "history":
                turns = (f"user: {query}\nassistant: {answer}" for query, answer in self.history)
                return "\n".join(turns) or "nothing yet"
            case "seed":
                return self._seed(arguments)
            case "conf":
                return self._conf(arguments)
        raise ValueError(f"no command :{word}; known: {' '.join(f':{name}' for name in COMMANDS)}")

    def answer(self, query: str, emit: Callable[[str], None]) -> str:
        """Asks the model, emits its answer as it comes, and returns a line about the time that it took.

        A KeyboardInterrupt stops the answer and nothing else. Old turns that do not fit the window stay in the history.
        """
        tokenizer, pieces, begin, first = self.model.vocabulary, [], time.perf_counter(), []
        ids, dropped = self._context(query)

        def on_text(row: int, text: str) -> None:
            first.append(time.perf_counter() - begin)
            pieces.append(text)
            emit(text)

        stops = tokenizer.turn_stops()
        try:
            sampled = self.model.complete([ids], self.sampling, self.max_new_tokens, stops, [self.seed], on_text)[0]
            tokens, reason = len(sampled.ids), sampled.reason
        except KeyboardInterrupt:
            tokens, reason = len(tokenizer.encode_ordinary("".join(pieces))), "stopped"
        self.history.append((query, "".join(pieces)))
        seconds = time.perf_counter() - begin
        summary = f"{tokens} tokens in {seconds:.1f} s"
        if first and seconds > first[0]:
            summary += f", the first after {first[0]:.1f} s, then {(tokens - 1) / (seconds - first[0]):.1f} a second"
        if dropped > 0:
            summary += f"; {dropped} old turns no longer fit the window"
        return summary + {"stop": "", "length": "; cut off at max_new_tokens", "stopped": "; stopped"}[reason]

    def _context(self, query: str) -> tuple[list[int], int]:
        """Ids of the next prompt, and how many old exchanges it leaves out because they do not fit the window."""
        model, tokenizer = self.model, self.model.vocabulary
        window = model.generation_defaults.max_window_size or (WINDOW if tokenizer.chat_template is None else None)
        room = None if model.window is None else model.window - self.max_new_tokens
        if tokenizer.chat_template is None:
            if room is not None:
                window = min(window, room - len(tokenizer.encode_ordinary(query)) - 16)
            system = chatml.SYSTEM if self.system is None else self.system
            _, ids = chatml.make_context(tokenizer, query, self.history, system, window)
            kept = (ids.count(tokenizer.im_start) - 3) // 2  # pairs, without the turns of system, query and answer
            return ids, len(self.history) - kept
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        question = {"role": "user", "content": query}
        limit = min((n for n in (window, room) if n is not None), default=None)
        for dropped in range(len(self.history) + 1):
            pairs = [zip(("user", "assistant"), pair) for pair in self.history[dropped:]]
            turns = [{"role": role, "content": text} for pair in pairs for role, text in pair]
            ids = tokenizer.encode_chat([*system, *turns, question])
            if limit is None or len(ids) <= limit:
                break
        return ids, dropped

    def _seed(self, arguments: list[str]) -> str:
        if arguments:
            if len(arguments) > 1 or not arguments[0].isdigit() or int(arguments[0]) >= 1 << 32:
                raise ValueError(f":seed {' '.join(arguments)}: wanted a whole number from 0 to 4294967295")
            self.seed = int(arguments[0])
        return f"seed={self.seed}"

    def _conf(self, arguments: list[str]) -> str:
        if arguments == ["reset"]:
            self._set(self.initial)
        elif arguments:
            settings = dict(self.settings)
            for item in arguments:
                key, equals, value = item.partition("=")
                if not equals or key not in KINDS:
                    hint = overrides.suggest(key, KINDS)
                    raise ValueError(f":conf {item}: wanted KEY=VALUE; known: {', '.join(KINDS)}.{hint}")
                settings[key] = overrides.convert(value, KINDS[key], key)
            self._set(settings)
        values = {"temperature": 0} | dataclasses.asdict(self.sampling) | {"max_new_tokens": self.max_new_tokens}
        return ", ".join(f"{key}={values[key]}" for key in KINDS if key in values)
