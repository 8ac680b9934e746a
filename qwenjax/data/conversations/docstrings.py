"""Functions of Python's standard library and their docstrings: alignment data that needs no download.

A row asks for a function's docstring. Three answers are scored: the first sentence of its own docstring (3), that of
another function of the same module (2), and the words of that other sentence shuffled (0).
"""

import ast
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from qwenjax.common.hashing import keyed_hash
from qwenjax.sources import documents
from qwenjax.sources.slices import Report

ASK = "Write a docstring for this function of the module {module}:\n\n{signature}"
WORDS = (3, 30)  # fewer say nothing, more are a paragraph
SCORES = [3.0, 2.0, 0.0]
MAX_CHARACTERS = 200  # of a signature and of a sentence; with the prompt around them, about 120 tokens
CALL = re.compile(r"[\w.]+\([^()]*\)(\s*->\s*[\w, ()\[\]]+)?\.?")  # a signature instead of a sentence
SENTENCE = re.compile(r".+?[.!?](?=\s+[A-Z'\"`(]|$)|.+")


class DocumentedFunction(NamedTuple):
    """A function or method with a docstring."""

    origin: str  # 'python-stdlib/MODULE.py:LINE'
    signature: str
    summary: str  # the first sentence of its docstring


def rows() -> Iterator[tuple[str, dict]]:
    """(origin, row of the format `ranked`) of every function whose first sentence no earlier function has."""
    known: set[str] = set()
    for document in documents.documents(documents.STDLIB, Report()):
        if not document.origin.endswith(".py"):
            continue  # the language reference
        module = document.origin.removeprefix(f"{documents.STDLIB}/").removesuffix(".py").removesuffix("/__init__")
        found = []
        for function in functions(document.text, document.origin):
            if function.summary.lower() not in known:
                known.add(function.summary.lower())
                found.append(function)
        # Each function gets the sentence of the next one in a shuffled circle, so never its own
        order = sorted(found, key=lambda f: keyed_hash("docstrings", 0, f"{f.signature}\n{f.summary}"))
        other = {this.origin: following.summary for this, following in zip(order, [*order[1:], *order[:1]])}
        for origin, signature, summary in found:
            prompt = ASK.format(module=module.replace("/", "."), signature=signature)
            responses = [summary] if len(found) == 1 else [summary, other[origin], shuffled(other[origin])]
            yield origin, {"prompt": prompt, "responses": responses, "scores": SCORES[: len(responses)]}


def shuffled(sentence: str) -> str:
    """The words of a sentence in an order drawn by hashes, never the original one."""
    words = sentence.split()
    order = sorted(range(len(words)), key=lambda i: keyed_hash("words", i, sentence))
    drawn = [words[i] for i in order]
    return " ".join(drawn if drawn != words else [*words[1:], words[0]])


def functions(text: str, origin: str) -> Iterator[DocumentedFunction]:
    """The functions and methods of a module that have a docstring; none if this Python cannot parse it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # such as an invalid escape sequence
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node, owner in _definitions(tree, ""):
        head = f"class {owner}:\n    " * bool(owner) + "async " * isinstance(node, ast.AsyncFunctionDef)
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"{head}def {node.name}({ast.unparse(node.args)}){returns}"
        summary = first_sentence(ast.get_docstring(node) or "")
        if summary and len(signature) <= MAX_CHARACTERS:
            yield DocumentedFunction(f"{origin}:{node.lineno}", signature, summary)


def _definitions(node: ast.AST, owner: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """(definition, class around it or ''), without definitions inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, owner
        else:
            yield from _definitions(child, child.name if isinstance(child, ast.ClassDef) else owner)


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line; '' if it is too short, too long or no prose."""
    lines = docstring.strip().split("\n\n")[0].splitlines()
    while lines and CALL.fullmatch(lines[0].strip()):
        lines = lines[1:]
    match = SENTENCE.match(" ".join(" ".join(lines).split()))
    sentence = match[0] if match else ""
    words = len(re.findall(r"[A-Za-z]{2,}", sentence))
    is_prose = WORDS[0] <= words <= WORDS[1] and not sentence.startswith((">>>", ":", "@"))
    return sentence if is_prose and len(sentence) <= MAX_CHARACTERS else ""
