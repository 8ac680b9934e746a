"""Our chat templates against a folder of recordings of transformers: `python tests/chat_format/check_goldens.py DIR`.

The folder has cases.json (renderings, errors, ids, masks), micro.json (tiny templates), injection.json (hostile texts)
and a tokenizer.json that all templates share. Exit code 1 if anything differs; every difference is printed.
"""

import datetime
import json
import re
import sys
from collections import Counter
from pathlib import Path

from qwenjax.chat_format import provenance, template, template_environment
from qwenjax.chat_format.template import ChatTemplate
from qwenjax.tokenizer.hub import HubTokenizer


class Goldens:
    """The recordings of a folder, and what of them differs: `differences` has one line each."""

    def __init__(self, folder: Path):
        self.folder, self.differences, self.counts = folder, [], Counter()
        self.cases = json.loads((folder / "cases.json").read_text())
        names = {surface for own in self.cases["templates"].values() for surface in own["special_tokens"].values()}
        end = json.dumps({"eos_token": sorted(names)[0]}).encode()
        self.tokenizer = HubTokenizer((folder / "tokenizer.json").read_bytes(), end)
        frozen = datetime.datetime.fromisoformat(self.cases["frozen_now"])
        template_environment.datetime = type("Frozen", (), {"now": staticmethod(lambda: frozen)})

    def template(self, name: str) -> ChatTemplate:
        facts = self.cases["templates"][name]
        texts = {key: (self.folder / file).read_text() for key, file in facts["files"].items()}
        return ChatTemplate(texts if facts["named"] else texts["default"], facts["special_tokens_map"])

    def arguments(self, args: dict) -> dict:
        tables = {key: self.cases[key] for key in ("tools", "documents")}
        return {key: tables[key][x] if key in tables and isinstance(x, str) else x for key, x in args.items()}

    def expect(self, what: str, label: object, got: object, wanted: object) -> None:
        self.counts[what] += 1
        if got != wanted:
            self.differences.append(f"{what} {label}: got {got!r:.300}, wanted {wanted!r:.300}")

    def check_cases(self) -> None:
        known: dict[str, str] = {}
        for case in self.cases["cases"]:
            own = self.template(case["template"])
            messages = self.cases["conversations"][case["conv"]]
            wanted = known.get(case.get("same_as"), case.get("rendered"))
            got = outcome(lambda: own.render(messages, **self.arguments(case["args"])))  # noqa: B023
            if wanted is None:
                self.expect("error", case["id"], got[1], case["error"]["class"].rpartition(".")[2])
                if case["error"]["raised_by_template"]:
                    self.expect("message", case["id"], got[2], case["error"]["message"])
                continue
            known[case["id"]] = wanted
            self.expect("rendered", case["id"], got[0], wanted)
            if "ids" in case and not self._forges(got[0]):
                self.expect("ids", case["id"], self.tokenizer.encode_rendered(got[0]), case["ids"])

    def _forges(self, text: provenance.Text) -> bool:
        """Whether a message holds the surface of a token, which transformers takes for the token."""
        every = self.tokenizer._surfaces(frozenset(self.tokenizer.added)).findall(str.__str__(text))
        pieces = provenance.control_pieces(text, self.tokenizer._surfaces(frozenset(self.tokenizer.added)))
        return len(every) != sum(is_control for *_, is_control in pieces)

    def check_masks(self) -> None:
        for row in self.cases["assistant_masks"]:
            if "error" not in row:
                messages = self.cases["conversations"][row["conv"]]
                text = self.template(row["template"]).render(messages, **self.arguments(row["args"]))
                label = (row["template"], row["conv"], row["args"])
                if not self._forges(text):
                    self.expect("mask", label, template.generated_mask(self.tokenizer, text), row["assistant_masks"])

    def check_micro(self) -> None:
        micro = json.loads((self.folder / "micro.json").read_text())
        context = dict(micro["context"])
        messages = context.pop("messages")
        for row in micro["rows"]:
            got = outcome(lambda: ChatTemplate(row["template"]).render(messages, **context))  # noqa: B023
            if "error" in row:
                self.expect("micro error", row["template"], got[1], row["error"]["class"].rpartition(".")[2])
            else:
                text = re.sub(r" at 0x[0-9a-f]+", " at 0x...", str(got[0]))
                self.expect("micro", row["template"], text, row["rendered"])

    def check_injection(self) -> None:
        control = set(self.tokenizer.added.values())
        for name, rows in json.loads((self.folder / "injection.json").read_text())["templates"].items():
            for row in rows:
                label = (name, row["place"], row["kind"])
                text = self.template(name).render(row["messages"], **self.arguments(row["args"]))
                self.expect(
                    "injected text",
                    label,
                    str(text),
                    row["frame"][0] + row.get("inserted", _text(row)) + row["frame"][1],
                )
                ids = self.tokenizer.encode_rendered(text)
                self.expect(
                    "forged", label, [i for i in ids if i in control], [i for i in row["ids_safe"] if i in control]
                )
                self.expect("decoded", label, self.tokenizer.decode(ids), self.tokenizer.decode(row["ids_safe"]))


def _text(row: dict) -> str:
    """The hostile text: what the last message of that place says."""
    return next(
        m["content"]
        for m in reversed(row["messages"])
        if m["role"] == {"history": "assistant"}.get(row["place"], row["place"])
    )


def outcome(render) -> tuple:
    """(text, None, None), or (None, class of the error, its message)."""
    try:
        return render(), None, None
    except Exception as error:  # what a template raises is compared
        return None, type(error).__name__, str(error)


def check(folder: Path) -> Goldens:
    """All recordings of a folder."""
    goldens = Goldens(folder)
    goldens.check_cases()
    goldens.check_masks()
    goldens.check_micro()
    goldens.check_injection()
    return goldens


if __name__ == "__main__":
    goldens = check(Path(sys.argv[1]))
    print(*goldens.differences, sep="\n")
    print(
        ", ".join(f"{count} {what}" for what, count in goldens.counts.items()), f"; {len(goldens.differences)} differ"
    )
    sys.exit(bool(goldens.differences))
