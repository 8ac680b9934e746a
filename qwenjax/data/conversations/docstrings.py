"""Functions of this Python's standard library and what their docstrings say: alignment data that needs no download.

A row asks for a function's docstring. Three answers are scored: the first sentence of the function's own (3), that of
another function of the same module (2), and the words of that other one in disorder (0). Each sentence is the best
answer to one prompt and the second best to another, so that length and style do not tell these two apart: one has to
read the prompt, which takes a larger model than the disorder does.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from qwenjax.data.shards.worker import keyed_hash
from qwenjax.sources import documents
from qwenjax.sources.slices import Report

ASK = "Write a docstring for this function of the module {module}:\n\n{signature}"
WORDS = (3, 30)  # of a sentence that says something, and is no paragraph
SCORES = [3.0, 2.0, 0.0]
LONGEST = 200  # characters of a signature and of a sentence: about 120 tokens together with what is around them
CALL = re.compile(r"[\w.]+\([^()]*\)(\s*->\s*[\w, ()\[\]]+)?\.?")  # a signature in place of a sentence
SENTENCE = re.compile(r".+?[.!?](?=\s+[A-Z'\"`(]|$)|.+")


class DocumentedFunction(NamedTuple):
    """A function or method with a docstring."""

    place: str  # 'python-stdlib/MODULE.py:LINE'
    signature: str
    says: str  # the first sentence of its docstring


def rows() -> Iterator[tuple[str, dict]]:
    """(place, row) of every function whose docstring begins with a sentence that no function before it had.

    A row has 'prompt', 'responses', best first, and 'scores', as the format `ranked` reads them; of a module's only
    function one response. The same Python gives the same rows in the same order.
    """
    known: set[str] = set()
    for document in documents.documents(documents.STDLIB, Report()):
        if not document.origin.endswith(".py"):
            continue  # the language reference
        module = document.origin.removeprefix(f"{documents.STDLIB}/").removesuffix(".py").removesuffix("/__init__")
        found = []
        for function in functions(document.text, document.origin):
            if function.says.lower() not in known:
                known.add(function.says.lower())
                found.append(function)
        # one round through a shuffled module: nobody gets its own
        order = sorted(found, key=lambda f: keyed_hash("docstrings", 0, f"{f.signature}\n{f.says}"))
        other = {this.place: after.says for this, after in zip(order, [*order[1:], *order[:1]])}
        for place, signature, says in found:
            prompt = ASK.format(module=module.replace("/", "."), signature=signature)
            responses = [says] if len(found) == 1 else [says, other[place], disordered(other[place])]
            yield place, {"prompt": prompt, "responses": responses, "scores": SCORES[: len(responses)]}


def disordered(sentence: str) -> str:
    """The words of a sentence in an order that is drawn by their hashes, and never the one they had."""
    words = sentence.split()
    order = sorted(range(len(words)), key=lambda i: keyed_hash("words", i, sentence))
    mixed = [words[i] for i in order]
    return " ".join(mixed if mixed != words else [*words[1:], words[0]])


def functions(text: str, origin: str) -> Iterator[DocumentedFunction]:
    """The functions of a module and the methods of its classes that have a docstring, in their order.

    A module that this Python cannot parse has none.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # such as a backslash in the wrong place
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node, owner in _definitions(tree, ""):
        arguments, returns = ast.unparse(node.args), f" -> {ast.unparse(node.returns)}" if node.returns else ""
        word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        signature = f"{word} {node.name}({arguments}){returns}"
        if owner:
            signature = f"class {owner}:\n    {signature}"
        says = first_sentence(ast.get_docstring(node) or "")
        if says and len(signature) <= LONGEST:
            yield DocumentedFunction(f"{origin}:{node.lineno}", signature, says)


def _definitions(node: ast.AST, owner: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """(definition, class around it or ''), without what functions define within."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, owner
        else:
            yield from _definitions(child, child.name if isinstance(child, ast.ClassDef) else owner)


def first_sentence(docstring: str) -> str:
    """Of a docstring's first paragraph, on one line; '' if it says too little or too much, or no words at all."""
    lines = docstring.strip().split("\n\n")[0].splitlines()
    while lines and CALL.fullmatch(lines[0].strip()):
        lines = lines[1:]
    found = SENTENCE.match(" ".join(" ".join(lines).split()))
    sentence = found[0] if found else ""
    words = len(re.findall(r"[A-Za-z]{2,}", sentence))
    fits = WORDS[0] <= words <= WORDS[1] and len(sentence) <= LONGEST and not sentence.startswith((">>>", ":", "@"))
    return sentence if fits else ""
