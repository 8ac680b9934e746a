"""Chat templates in Jinja, rendered as transformers renders them, and safe against texts that forge control tokens.

A template comes with a checkpoint, so it is code of others: it runs in Jinja's sandbox. What it writes around the texts
of messages may become control tokens; what the messages hold never does (`qwenjax.chat_format.provenance`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwenjax.chat_format import provenance
from qwenjax.chat_format.template_environment import compile_template

# Roles that a message may have without counting as text of the message: a template may build a control token of them,
# as Phi's `'<|' + role + '|>'`. Any other role is text.
ROLES = frozenset({"system", "user", "assistant", "tool", "developer", "function", "ipython", "model", "observation"})
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field, the first set one is taken
_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """The chat template of a checkpoint.

    Attributes:
      templates: sources by name, as {'default': …, 'tool_use': …}; None if the checkpoint has one without a name.
      special_tokens: what the template sees by the names `bos_token`, `eos_token`, …
    """

    def __init__(self, template: Any, special_tokens: Mapping[str, str] | None = None):
        """`template`: as in tokenizer_config.json, a text, texts by name, or a list of {"name", "template"}.

        Raises ValueError for anything else.
        """
        if isinstance(template, list):
            template = {one["name"]: one["template"] for one in template if {"name", "template"} <= one.keys()}
        texts = template.values() if isinstance(template, Mapping) else [template]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"chat_template={template!r:.80}: wanted a text, or texts with names")
        self.templates = None if isinstance(template, str) else dict(template)
        self._single = template if isinstance(template, str) else None
        self.special_tokens = dict(special_tokens or {})

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides a rendering."""
        facts = json.dumps([self.templates or self._single, self.special_tokens], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    def source(self, tools: Sequence | None = None, name: str | None = None) -> str:
        """The template that applies: by name, or `tool_use` when tools are given, or `default`.

        A `name` that is not one of the templates is itself a template, as in transformers.

        Raises:
          ValueError: several templates, none of them the default, and no name.
        """
        if self.templates is None:
            return self._single if name is None else name
        if name is not None:
            return self.templates.get(name, name)
        if tools is not None and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" not in self.templates:
            raise ValueError(
                f"the checkpoint has the chat templates {', '.join(sorted(self.templates))} and no default: name one"
            )
        return self.templates["default"]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        chat_template: str | None = None,
        **arguments: Any,
    ) -> provenance.Text:
        """The conversation as the checkpoint's template writes it; encode it with `encode_rendered`.

        Args:
          messages: turns with `role` and `content`, `tool_calls`, `reasoning_content`, … as the template wants them.
          tools: JSON schemas of functions.
          continue_final_message: end within the last message, so that the model continues it; a name means that field.
          chat_template: which of several templates, or the text of another one.
          **arguments: what else the template reads, such as `enable_thinking`; they win over special tokens.
        Raises:
          ValueError: no messages, or a final message that cannot be continued.
          jinja2.TemplateError, TypeError, …: the template refuses the conversation, or fails.
        """
        source = self.source(tools, chat_template)
        if not messages:
            raise ValueError("a conversation needs at least one message, like {'role': 'user', 'content': 'Hello!'}")
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other: the reply has begun")
        conversation = [_message(message) for message in messages]
        continued = _mark_end(conversation, continue_final_message, source) if continue_final_message else None
        trusted = {
            name: value for name, value in arguments.items() if name in self.special_tokens or name.endswith("_token")
        }
        context = {
            **self.special_tokens,
            "messages": conversation,
            "tools": provenance.of_messages(tools),
            "documents": provenance.of_messages(documents),
            "add_generation_prompt": add_generation_prompt,
            **provenance.of_messages(arguments),
            **trusted,
        }
        rendered = compile_template(source).render(context)
        return rendered if continued is None else _cut_at_mark(rendered, continued)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a template sees it: without fields that are None, reasoning under both of its names."""
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is a {type(message).__name__}; wanted {{'role': …, 'content': …}}")
    fields = {str(key): provenance.of_messages(value) for key, value in message.items() if value is not None}
    if isinstance(role := message.get("role"), str) and role in ROLES:
        fields["role"] = role
    reasoning = next((fields[name] for name in REASONING if name in fields), None)
    if reasoning is not None:
        fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
    return fields


def _mark_end(conversation: list[dict[str, Any]], which: bool | str, source: str) -> str:
    """Puts a mark behind the field of the last message that is to be continued; returns the field's text."""
    field = "content" if which is True else str(which)
    last = conversation[-1]
    if (text := last.get(field)) is None:
        raise ValueError(f"the final message has no {field!r} to continue")
    fields = [name for name in REASONING if last.get(name) == text] if field in REASONING else [field]
    if not any(name in source for name in fields):
        raise ValueError(
            f"the chat template never reads {field!r}, so that field of the final message cannot be continued"
        )
    if isinstance(text, list):
        part = next((part for part in reversed(text) if isinstance(part, dict) and "text" in part), None)
        if part is None:
            raise ValueError("the final message has no part with text to continue")
        text, part["text"] = part["text"], part["text"] + _CONTINUE
        return text
    for name in fields:
        last[name] = text + _CONTINUE
    return text


def _cut_at_mark(rendered: provenance.Text, text: str) -> provenance.Text:
    mark = _CONTINUE.strip()
    if text.strip() not in rendered or mark not in rendered:
        raise ValueError(
            f"the chat template drops or rewrites the final message, so it cannot be continued: {text.strip()[:200]!r}"
        )
    at = rendered.rindex(mark)
    return rendered[:at] if rendered[at:].startswith(_CONTINUE) else rendered[:at].rstrip()


def generated_mask(tokenizer, text: provenance.Text) -> list[int]:
    """1 for each id of a rendered conversation that lies in a `{% generation %}` block, even in part; else 0."""
    inside = [bool(mark & provenance.GENERATED) for mark in provenance.marks(text)]
    return [int(any(inside[begin:end])) for begin, end in tokenizer.locate_rendered(text)[1]]


# ---- training conversations ----


def encode_with_mask(
    tokenizer, messages: Sequence[Mapping[str, Any]], loss_mask: str = "assistant", **arguments: Any
) -> tuple[list[int], list[int]]:
    """Ids of a training conversation by the tokenizer's template, and for each id whether predicting it carries loss.

    What the assistant writes is what the template puts into `{% generation %}` blocks. Without such blocks it is what
    a turn adds to the prompt before it, up to the token that ends the turn.

    Args:
      loss_mask: only 'assistant': the other masks are of ChatML as released.
      arguments: of `ChatTemplate.render`.
    Raises:
      ValueError: another mask, or a template that writes earlier turns differently once a turn follows.
    """
    if loss_mask != "assistant":
        raise ValueError(f"loss_mask={loss_mask!r} is for ChatML; a model's own chat template takes 'assistant' only")
    template = tokenizer.chat_template
    if "generation" in template.source(arguments.get("tools")):
        text = template.render(messages, **arguments)
        if any(mark & provenance.GENERATED for mark in provenance.marks(text)):
            return tokenizer.encode_rendered(text), generated_mask(tokenizer, text)
    text = template.render(messages, **arguments)
    ids, spans = tokenizer.locate_rendered(text)
    mask = [0] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = _start_of_turn(template, messages[:i], text, arguments)
            first = next((n for n, (begin, _) in enumerate(spans) if begin >= start), len(ids))
            last = next((n for n in range(first, len(ids)) if ids[n] == tokenizer.turn_end), None)
            if last is None:  # some templates leave the last turn open; the model has to learn to end it
                last = len(ids)
                ids, mask = [*ids, tokenizer.turn_end], [*mask, 1]
            mask[first : last + 1] = [1] * (last + 1 - first)
    return ids, mask


def _start_of_turn(template: ChatTemplate, before: Sequence[Mapping[str, Any]], text: str, arguments: dict) -> int:
    """Where the assistant begins to write in a conversation: behind what the prompt before its turn has in common."""
    prompt = template.render(before, add_generation_prompt=True, **arguments)
    closed = template.render(before, **arguments)
    same = next((i for i, (a, b) in enumerate(zip(str(prompt), str(text))) if a != b), min(len(prompt), len(text)))
    if same < len(closed):
        raise ValueError(
            "the chat template writes earlier turns differently once another turn follows, so it does not show what "
            "the assistant wrote: train on one answer at a time, or use a template with {% generation %} blocks"
        )
    return same


def turn_end(tokenizer) -> int:
    """Id of the control token that the template writes behind an assistant's turn, or of the end of a text."""
    word = "qwertyuiop"  # in no template
    turns = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", word), ("user", "Hi"))]
    text = tokenizer.chat_template.render(turns)
    ids, spans = tokenizer.locate_rendered(text)
    control, after = set(tokenizer.added.values()), text.find(word)
    found = [token for token, (begin, _) in zip(ids, spans) if begin >= after >= 0 and token in control]
    named = tokenizer.added.get(tokenizer.chat_template.special_tokens.get("eos_token"), tokenizer.eot)
    return found[0] if found else named
