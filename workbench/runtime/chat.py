"""Chat messages -> token ids, in the words that a model was tuned on. Knows tokenizers, no model.

A folder's own ``chat_template`` wins. Without one the architecture decides: InternLM v1 has turns of its own, InternLM2
and InternLM3 speak ChatML. What a message says never becomes a token that steers the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import WorkbenchError
from workbench.runtime.tokenizer import Tokenizer, encode_parts, special_ids

ROLES = ("system", "user", "assistant")
# Tokens that end a turn, in whichever version.
STOPS = ("<eoa>", "<|im_end|>")


class ChatError(WorkbenchError):
    """Messages that no prompt can be made of."""


@dataclass(frozen=True)
class Message:
    """What one side said.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ChatError(f"a message has the role {self.role!r}", allowed=", ".join(ROLES))


@dataclass(frozen=True)
class ChatFormat:
    """How a model's turns are written.

    Attributes:
        turns: role -> the turn around ``{}``.
        answer: what the answer begins with.
    """

    turns: Mapping[str, str]
    answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """All turns, and the beginning of the answer."""
        # No str.format: a message may hold braces.
        turns = (self.turns[message.role].replace("{}", message.content) for message in messages)
        return "".join(turns) + self.answer


_CHAT_ML = ChatFormat({role: f"<|im_start|>{role}\n{{}}<|im_end|>\n" for role in ROLES}, "<|im_start|>assistant\n")
FORMATS = {
    "InternLMForCausalLM": ChatFormat(
        {
            "system": "<|System|>:{}\n",
            "user": "<|User|>:{}<eoh>\n",
            "assistant": "<|Bot|>:{}<eoa>\n",
        },
        "<|Bot|>:",
    ),
    "InternLM2ForCausalLM": _CHAT_ML,
    "InternLM3ForCausalLM": _CHAT_ML,
}


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message], architecture: str) -> list[int]:
    """The prompt that asks a model to answer the last message.

    Args:
        tokenizer: of the model's folder.
        messages: the conversation, oldest first; at least one.
        architecture: of the model, as in :class:`~workbench.model.config.ModelConfig`.

    Raises:
        ChatError: no messages, no format known, or a template that refuses them.
        CheckpointError: a message holds a special token's text, and this tokenizer cannot keep that apart.
    """
    if not messages:
        raise ChatError("a chat without messages", fix="give at least one")
    special = special_ids(tokenizer)
    marker = _unused_character(messages)
    hidden = [Message(message.role, _hide(message.content, special, marker)) for message in messages]
    text = _render(tokenizer, hidden, architecture)
    if marker not in text:
        ids = tokenizer.encode(text, add_special_tokens=False)
        # Messages hold no special token's text here; a tokenizer that normalizes may still make one of something alike.
        if sum(number in special.values() for number in ids) <= sum(text.count(token) for token in special):
            return ids
    return encode_parts(tokenizer, list(_parts(text, special, marker)))


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer, beside the model's own ends."""
    known = special_ids(tokenizer)
    return tuple(known[text] for text in STOPS if text in known)


def _render(tokenizer: Tokenizer, messages: Sequence[Message], architecture: str) -> str:
    if tokenizer.chat_template:
        return _render_template(tokenizer, messages)
    if architecture not in FORMATS:
        raise ChatError(
            f"no chat prompt is known for {architecture}, and the tokenizer has no chat_template",
            allowed=", ".join(FORMATS),
            fix="give a tokenizer folder with a chat_template, or write the prompt yourself and leave --chat out",
        )
    return (tokenizer.bos_token or "") + FORMATS[architecture].render(messages)


def _render_template(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The folder's own template, run by transformers in Jinja's sandbox."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    given: dict[str, Any] = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered: Any = render_jinja_template(
            [conversation], chat_template=tokenizer.chat_template, add_generation_prompt=True, **given
        )
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ChatError(
            f"the tokenizer's chat_template does not take these messages ({reason})",
            fix="change the messages, or write the prompt yourself and leave --chat out",
        ) from error
    # One text for each conversation, beside what assistants said in them.
    return str(rendered[0][0])


# ---- special tokens in messages: hidden from the template, and put back as mere text


def _unused_character(messages: Sequence[Message]) -> str:
    """A character of the private use area that no message holds."""
    held = {character for message in messages for character in message.content}
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in held)


def _pattern(special: Mapping[str, int]) -> re.Pattern[str]:
    texts = sorted(special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def _hide(content: str, special: Mapping[str, int], marker: str) -> str:
    """Every special token's text in a message, as its id between two markers."""
    return _pattern(special).sub(lambda match: f"{marker}{special[match[0]]}{marker}", content)


def _parts(text: str, special: Mapping[str, int], marker: str) -> Iterator[str | int]:
    """The template's own special tokens as ids, and the texts between them as they were written."""
    texts = {number: token for token, number in special.items()}
    start = 0
    for match in _pattern(special).finditer(text):
        yield _shown(text[start : match.start()], texts, marker)
        yield special[match[0]]
        start = match.end()
    yield _shown(text[start:], texts, marker)


def _shown(run: str, texts: Mapping[int, str], marker: str) -> str:
    shown = re.sub(f"{marker}([0-9]+){marker}", lambda match: texts[int(match[1])], run)
    if marker in shown:
        raise ChatError(
            "the tokenizer's chat_template takes a message with a special token apart",
            fix="leave special tokens out of the messages",
        )
    return shown
