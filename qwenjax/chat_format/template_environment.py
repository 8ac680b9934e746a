"""Jinja's sandbox with the names that chat templates expect, in which text keeps its origin (`provenance`).

The template is code of others: it may not reach Python's objects, write into its inputs, or fill the memory.
"""

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from markupsafe import Markup

from qwenjax.chat_format import provenance

LARGEST = 10**7  # characters or digits that a product or power within a template may have


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> jinja2.Template:
    return _Environment().from_string(source)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: what the assistant writes, marked for the loss."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> provenance.Text:
        return provenance.generated(caller())


class _Code(CodeGenerator):
    """Compiles `a ~ b` to the environment's join, which keeps origins."""

    def visit_Concat(self, node, frame):
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the names that chat templates expect, in which text keeps its origin."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"%", "*", "**"})

    def __init__(self):
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_printed
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: _keeps_origin(function) for name, function in self.filters.items()}
        self.filters["join"] = _join_filter(self.filters["join"])
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
        )

    def concat(self, parts):
        return provenance.join("", (str(_printed(part)) for part in parts))

    def call(self, context, function, *args, **kwargs):
        result = super().call(context, function, *args, **kwargs)
        owner = getattr(function, "__self__", None)
        if getattr(function, "__name__", "") == "join" and isinstance(owner, str):
            return provenance.join(owner, args[0])
        return _with_origin(result, (owner if isinstance(owner, str) else None, args, kwargs))

    def call_binop(self, context, operator, left, right):
        if operator in ("*", "**") and _size(operator, left, right) > LARGEST:
            raise SecurityError(f"a value of more than {LARGEST:,} characters or bits in a chat template")
        return _with_origin(super().call_binop(context, operator, left, right), (left, right))


def _size(operator: str, left: Any, right: Any) -> int:
    """Of a product of a sequence and a number in items, of a power of whole numbers in bits; others are small."""
    if operator == "**":
        return left.bit_length() * right if isinstance(left, int) and isinstance(right, int) else 0
    pair = (left, right) if isinstance(right, int) else (right, left)
    return len(pair[0]) * pair[1] if isinstance(pair[0], (str, list, tuple)) and isinstance(pair[1], int) else 0


def _printed(value):
    """A value before it is printed: what is no string, but may hold message text, prints as message text."""
    return value if isinstance(value, str) or not provenance.holds_message(value) else provenance.Text(str(value))


def _with_origin(result, arguments):
    """The result of an operation that does not follow characters: message text if any argument holds some."""
    if isinstance(result, (provenance.Text, provenance.MessageMarkup)) or not isinstance(result, (str, list, tuple)):
        return result
    if not provenance.holds_message(arguments):
        return result
    if isinstance(result, Markup):
        return provenance.MessageMarkup(result)
    if isinstance(result, str):
        return provenance.Text(result)
    return type(result)(provenance.Text(item) if type(item) is str else item for item in result)


def _keeps_origin(function):
    @functools.wraps(function)
    def filtered(*args, **kwargs):
        return _with_origin(function(*args, **kwargs), (args, kwargs))

    return filtered


def _join_filter(join):
    @functools.wraps(join)
    def joined(eval_ctx, value, d="", attribute=None):
        result = join(eval_ctx, items := list(value), d, attribute)
        if isinstance(result, Markup) or attribute is not None:
            return result
        return provenance.join(str(d), (str(_printed(item)) for item in items))

    return joined


def _to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _strftime_now(format):
    return datetime.now().strftime(format)


class _Dict:
    """`dict` of a template: callable, without the type's attributes."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args):
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` of a template, which refuses names that begin with an underscore."""

    def __init__(*args, **kwargs):  # as Jinja's: `self` stays free as a name
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name, value):
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name):
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template sets {name!r}: names of a namespace cannot begin with an underscore")
