"""A conversation: its history, its settings, and the commands that begin with a colon."""

import re
import time
from collections.abc import Callable
from typing import Any

from qwenjax.chat_format import chatml
from qwenjax.config import overrides

HELP = """:help               this
:exit               leave (also Ctrl-D)
:clear              forget what was said
:history            what was said
:seed N             seed of the draws; the same seed and words give the same answers
:conf               show the settings
:conf KEY=VALUE …   change them: temperature (0: always the likeliest), top_p, top_k, repetition_penalty, max_new_tokens
:conf reset         as they were at the start
Ctrl-C stops an answer; what came of it stays in the history."""
KINDS = {"temperature": float, "top_k": int, "top_p": float, "repetition_penalty": float, "max_new_tokens": int}
WINDOW = 6144  # tokens of system turn and history, where the release does not say (report's chat models)


class Left(Exception):
    """The user has had enough."""


class Session:
    """One conversation with a `Model`.

    Attributes:
      history: (query, answer) pairs, oldest first.
      settings: those of KINDS that differ from the release's.
    """

    def __init__(self, model: Any, system: str = chatml.SYSTEM, seed: int = 0, settings: dict[str, Any] | None = None):
        """Raises ValueError if the model has no ChatML, or a setting is refused."""
        chatml.check(model.vocabulary)
        self.model, self.system, self.seed = model, system, seed
        self.given = dict(settings or {})
        self.history: list[tuple[str, str]] = []
        self._settle(self.given)

    def _settle(self, settings: dict[str, Any]) -> None:
        most = settings.get("max_new_tokens", self.model.habits.sampling.get("max_new_tokens", 512))
        if most < 1:
            raise ValueError(f"max_new_tokens={most}: wanted at least 1")
        self.policy = self.model.policy(**{key: settings[key] for key in settings.keys() - {"max_new_tokens"}})
        self.settings, self.most = dict(settings), most

    def command(self, line: str) -> str | None:
        """What a line that begins with `:word` says in return; None if it is no command but something to say.

        Raises:
          Left: it was :exit.
          ValueError: a command or setting that is not understood.
        """
        found = re.fullmatch(r":([a-z]+)(?:\s+(.*))?", line.strip(), flags=re.DOTALL)
        if not found:
            return None
        word, rest = found[1], (found[2] or "").split()
        commands: dict[str, Callable[[list[str]], str]] = {
            "help": lambda rest: HELP,
            "exit": self._exit,
            "clear": self._clear,
            "history": self._history,
            "seed": self._seed,
            "conf": self._conf,
        }
        if word not in commands:
            raise ValueError(f"no command :{word}; known: {' '.join(f':{name}' for name in commands)}")
        return commands[word](rest)

    def answer(self, query: str, emit: Callable[[str], None]) -> str:
        """Asks the model, emitting its answer as it comes; returns a line about how long that took.

        A KeyboardInterrupt stops the answer and nothing else. Old turns that the window does not hold are left out of
        the prompt, as in the released code (spec §6.2), and stay in the history.
        """
        tokenizer, pieces, begin, first = self.model.vocabulary, [], time.perf_counter(), []
        window = self.model.habits.max_window_size or WINDOW
        if self.model.window is not None:
            window = min(window, self.model.window - self.most - len(tokenizer.encode_ordinary(query)) - 16)
        _, ids = chatml.make_context(tokenizer, query, self.history, self.system, window)

        def on_text(row: int, text: str) -> None:
            first.append(time.perf_counter() - begin)
            pieces.append(text)
            emit(text)

        tokens, reason = None, "stopped"
        try:
            stops = chatml.stop_sequences(tokenizer)
            made = self.model.complete([ids], self.policy, self.most, stops, [self.seed], on_text)[0]
            tokens, reason = len(made.ids), made.reason
        except KeyboardInterrupt:
            tokens = len(tokenizer.encode_ordinary("".join(pieces)))
        self.history.append((query, "".join(pieces)))
        taken = time.perf_counter() - begin
        told = f"{tokens} tokens in {taken:.1f} s"
        if first and taken > first[0]:
            told += f", the first after {first[0]:.1f} s, then {(tokens - 1) / (taken - first[0]):.1f} a second"
        kept = (ids.count(tokenizer.im_start) - 3) // 2  # all turns but the system's, the query and the answer
        dropped = len(self.history) - 1 - kept
        if dropped > 0:
            told += f"; {dropped} old turns no longer fit the window"
        return told + {"stop": "", "length": "; cut off at max_new_tokens", "stopped": "; stopped"}[reason]

    # ---- commands ----

    def _exit(self, rest: list[str]) -> str:
        raise Left

    def _clear(self, rest: list[str]) -> str:
        self.history.clear()
        return "forgotten"

    def _history(self, rest: list[str]) -> str:
        return "\n".join(f"user: {said}\nassistant: {answered}" for said, answered in self.history) or "nothing yet"

    def _seed(self, rest: list[str]) -> str:
        if rest:
            if len(rest) > 1 or not rest[0].isdigit() or int(rest[0]) >= 1 << 32:
                raise ValueError(f":seed {' '.join(rest)}: wanted a whole number from 0 to 4294967295")
            self.seed = int(rest[0])
        return f"seed={self.seed}"

    def _conf(self, rest: list[str]) -> str:
        if rest == ["reset"]:
            self._settle(self.given)
        elif rest:
            settings = dict(self.settings)
            for item in rest:
                key, equals, value = item.partition("=")
                if not equals or key not in KINDS:
                    known = f"wanted KEY=VALUE; known: {', '.join(KINDS)}.{overrides.suggest(key, KINDS)}"
                    raise ValueError(f":conf {item}: {known}")
                settings[key] = overrides.convert(value, KINDS[key], key)
            self._settle(settings)
        return f"{self.policy}, max_new_tokens={self.most}"
