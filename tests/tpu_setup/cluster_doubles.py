"""A gcloud that answers from a list, for tests of what really runs."""

import json
import stat
import sys
from pathlib import Path

PROGRAM = """#!{python} -S
import json, os, re, sys
folder = {folder!r}
words = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
rules = json.load(open(folder + "/rules.json"))
for rule in rules:
    if re.search(rule["call"], words):
        out, err, code = rule["answers"][0]
        if len(rule["answers"]) > 1:
            rule["answers"].pop(0)
            json.dump(rules, open(folder + "/rules.json", "w"))
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
"""


class Fake:
    """Programs in `folder` that note their calls and answer by the first rule that fits.

    The last answer of a rule is given again and again; without a rule a program says nothing and exits with 0.
    """

    def __init__(self, folder: Path, *names: str):
        self.folder = folder
        for name in names:
            path = folder / name
            path.write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.rules = []
        self._write()

    def answer(self, call: str, *answers: str | tuple[str, str, int]) -> None:
        """A rule for calls that this regular expression is found in: texts on stdout, or (stdout, stderr, code)."""
        full = [(a, "", 0) if isinstance(a, str) else a for a in answers]
        self.rules.append({"call": call, "answers": full})
        self._write()

    def _write(self) -> None:
        (self.folder / "rules.json").write_text(json.dumps(self.rules))

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self, *known: str) -> list[str]:
        """The first of the known words in each call, in order."""
        words = [" ".join(call) for call in self.calls]
        return [next(k for k in known if k in line) for line in words if any(k in line for k in known)]
