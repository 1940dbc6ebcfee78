"""The tokens that a Hugging Face folder adds beside its ``tokenizer.model``: what their ids are, and which are special.

Read from ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``. Encodes no text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.checkpoint.json_fields import JsonFields
from workbench.errors import CheckpointError

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
# Lists of further special tokens; transformers 5 writes the second name.
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class TokenSettings:
    """What the files beside a ``tokenizer.model`` say.

    Attributes:
        ids: text -> id of tokens that the model itself does not know under that text.
        special: texts that are special: they steer a model, and are no part of what it says.
        roles: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token`` -> text, where stated.
        add_bos, add_eos: whether a text's ids begin and end with these.
        chat_template: a Jinja template, where there is one.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    roles: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool = True
    add_eos: bool = False
    chat_template: str | None = None


def read_token_settings(folder: Path) -> TokenSettings:
    """The settings of a folder; what is not stated is as in the tokenizer classes of InternLM and Llama.

    Raises:
        CheckpointError: a file is not JSON, or a field is not what it must be.
    """
    config, named, added = (_fields(folder / name) for name in (CONFIG_FILE, MAP_FILE, ADDED_FILE))
    ids = {text: added.integer(text, minimum=0) for text in added.content}
    special: set[str] = set()
    for text, number, is_special in _decoder(config):
        ids[text] = number
        if is_special:
            special.add(text)
    roles = {role: text for fields in (named, config) for role, text in _roles(fields)}
    special.update(roles.values())
    special.update(text for fields in (named, config) for text in _listed(fields))
    return TokenSettings(
        ids=ids,
        special=frozenset(special),
        roles=roles,
        add_bos=config.boolean("add_bos_token", default=True),
        add_eos=config.boolean("add_eos_token", default=False),
        chat_template=_template(folder, config),
    )


def _fields(path: Path) -> JsonFields:
    return JsonFields.read(path) if path.is_file() else JsonFields(path, {})


def _decoder(config: JsonFields) -> Iterator[tuple[str, int, bool]]:
    """Text, id and whether it is special, of every entry of ``added_tokens_decoder``."""
    if "added_tokens_decoder" not in config:
        return
    section = config.section("added_tokens_decoder")
    for number in section.content:
        if not number.isdecimal():
            raise section.wrong(number, "ids as keys")
        entry = section.section(number)
        yield entry.text("content"), int(number), entry.boolean("special", default=False)


def _roles(fields: JsonFields) -> Iterator[tuple[str, str]]:
    for role in ROLES:
        if role in fields:
            yield role, _token(fields, role, fields.content[role])


def _listed(fields: JsonFields) -> Iterator[str]:
    for name in _LISTS:
        if name in fields:
            value = fields.content[name]
            if not isinstance(value, (list, dict)):
                raise fields.wrong(name, "a list of tokens")
            for item in value.values() if isinstance(value, dict) else value:
                yield _token(fields, name, item)


def _token(fields: JsonFields, name: str, value: Any) -> str:
    """A token's text: written as such, or inside an object."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise fields.wrong(name, "the text of a token")
    return text


def _template(folder: Path, config: JsonFields) -> str | None:
    """The folder's chat template; of several in ``tokenizer_config.json`` the one called default."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is no text ({error.reason})", fix="copy it again") from error
    value = config.content.get("chat_template")
    if isinstance(value, list):
        items = (item for item in value if isinstance(item, dict))
        value = {item.get("name"): item.get("template") for item in items}.get("default")
    if value is not None and not isinstance(value, str):
        raise config.wrong("chat_template", "a text")
    return value
