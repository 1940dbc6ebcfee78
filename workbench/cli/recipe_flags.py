"""Recipe fields as flags, and flags laid over a recipe file. Nothing else knows which recipe fields exist."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cli.command import UsageError
from workbench.errors import nearest
from workbench.recipe import WEIGHT_KINDS, BuildLimits, Int8KVCache, Recipe

# The recipe's fields that come in kinds, each with fields of its own.
KINDS: dict[str, dict[str, type[Any]]] = {"weights": dict(WEIGHT_KINDS), "kv_cache": {Int8KVCache.kind: Int8KVCache}}
NONE = "none"


@dataclass(frozen=True)
class FlaggedField:
    """One recipe field that is a flag.

    Attributes:
        section: "" for the recipe's own fields, else the field that it is a part of: weights, kv_cache or build.
        name: field of that section.
        flag: as typed, with underscores.
        kind: which kind of weights or KV cache has this field; empty elsewhere.
        value_type: of one value.
        several: whether the flag takes a list.
        choices: what one value may be; empty when that is no fixed list.
        help, default: for --help.
    """

    section: str
    name: str
    flag: str
    kind: str
    value_type: Callable[[str], Any]
    several: bool
    choices: tuple[str, ...]
    help: str
    default: str

    @property
    def destination(self) -> str:
        """Where argparse leaves the value; a prefix keeps it apart from the commands' own flags."""
        return destination_of(self.section, self.name)


@dataclass(frozen=True)
class Replacement:
    """A flag that overrides what the recipe file states."""

    flag: str
    value: str
    replaced: str
    source: str

    def __str__(self) -> str:
        return f"{self.flag} {self.value} replaces {self.replaced} of {self.source}"


@dataclass(frozen=True)
class GivenRecipe:
    """The recipe that a command line means.

    Attributes:
        recipe: file and flags together.
        stated: (section, name) of every field that the file or a flag states.
        replacements: where both state one and differ.
    """

    recipe: Recipe
    stated: frozenset[tuple[str, str]]
    replacements: tuple[Replacement, ...]


def destination_of(section: str, name: str) -> str:
    """The attribute in which argparse leaves the value of one recipe field."""
    return f"recipe_{section}_{name}"


def flagged_fields() -> Iterator[FlaggedField]:
    """Every recipe field with a flag; those of a kind of weights or KV cache after the field that picks the kind."""
    for item in dataclasses.fields(Recipe):
        if item.name == "build":
            yield from _fields_of("build", BuildLimits)
        elif "flags" in item.metadata:
            yield _flagged("", "", item)
        for kind, owner in KINDS.get(item.name, {}).items():
            yield from _fields_of(item.name, owner, kind)


def _fields_of(section: str, owner: type[Any], kind: str = "") -> Iterator[FlaggedField]:
    return (_flagged(section, kind, item) for item in dataclasses.fields(owner) if "flags" in item.metadata)


def _flagged(section: str, kind: str, item: dataclasses.Field[Any]) -> FlaggedField:
    default = {} if item.default is dataclasses.MISSING else item.default
    types: dict[type, Callable[[str], Any]] = {int: int, float: float, dict: _named_number}
    return FlaggedField(
        section=section,
        name=item.name,
        flag=item.metadata["flags"][0],
        kind=kind,
        value_type=types.get(type(default), str),
        several=isinstance(default, (tuple, dict)),
        choices=tuple(item.metadata.get("choices", ())),
        help=(f"with --{section} {kind}: " if kind else "") + item.metadata["help"] + _out_of(item),
        default=_shown(default),
    )


def _named_number(word: str) -> tuple[str, float]:
    """``layers.3.down=0.7``."""
    name, _, number = word.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r}; allowed: NAME=NUMBER, such as layers.3.down=0.7") from None


def add_recipe_flags(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """``--recipe`` and one flag per recipe field. Values are checked by the recipe, so files and flags err alike.

    Args:
        parser: gets the flags.
        default: what --help names as the default of every field, in place of the recipe's own.
    """
    group = parser.add_argument_group("recipe")
    group.add_argument("--recipe", type=Path, metavar="FILE", help="YAML file with the choices; the flags below win")
    for item in flagged_fields():
        group.add_argument(
            item.flag,
            dest=item.destination,
            type=item.value_type,
            nargs="*" if item.several else None,
            metavar=_metavar(item),
            help=f"{item.help} (default: {default or item.default})",
        )


def given_recipe(args: argparse.Namespace, base: Recipe | None = None) -> GivenRecipe:
    """Lay the file over ``base`` (the defaults when None), and the flags over the file.

    Raises:
        RecipeError: the file, or the two together, are no recipe.
        UsageError: a flag names no kind of weights or KV cache, or belongs to another than the recipe has.
    """
    content = (Recipe() if base is None else base).to_dict()
    file_content, stated = _stated_by_file(args.recipe)
    replacements: list[Replacement] = []
    _lay_over(content, file_content)
    for item in flagged_fields():
        value = _value(item, getattr(args, item.destination))
        if value is None:
            continue
        place = _place(content, item)
        held = place.get(item.name)
        kept = item.name in KINDS and _kind(held) == value
        if (item.section, item.name) in stated and held != value and not kept:
            replacements.append(Replacement(item.flag, _shown(value), _shown(held), args.recipe.name))
        stated.add((item.section, item.name))
        if item.name in KINDS and not kept:
            stated = {(section, name) for section, name in stated if section != item.name}
            value = None if value == NONE else {"kind": value}
        # Of the same kind: what else is known of it stays.
        place[item.name] = held if kept else value
    return GivenRecipe(Recipe.from_dict(content), frozenset(stated), tuple(replacements))


def _value(item: FlaggedField, given: Any) -> Any:
    """What a flag says; None where it was not given.

    Raises:
        UsageError: no such kind. The recipe would not name "none", which only flags have.
    """
    if given is not None and item.name in KINDS and given not in item.choices:
        raise UsageError(
            f"{item.flag} {given}", allowed=", ".join(item.choices), fix=nearest(given, item.choices) or None
        )
    return dict(given) if item.value_type is _named_number and given is not None else given


def _kind(content: dict[str, Any] | None) -> str:
    return NONE if content is None else str(content["kind"])


def _place(content: dict[str, Any], item: FlaggedField) -> dict[str, Any]:
    """The part of a recipe's content that holds a field.

    Raises:
        UsageError: the field belongs to another kind of weights or KV cache than the recipe has.
    """
    if not item.section:
        return content
    place: dict[str, Any] | None = content[item.section]
    if item.kind and (place is None or place["kind"] != item.kind):
        raise UsageError(
            f"{item.flag} belongs to --{item.section} {item.kind}, but {item.section} is {_kind(place)}",
            fix=f"add --{item.section} {item.kind}, or leave {item.flag} out",
        )
    assert place is not None
    return place


def _lay_over(content: dict[str, Any], file_content: dict[str, Any]) -> None:
    """What a file states in the place of what was there; of weights and KV cache all, of the build each limit."""
    for name, value in file_content.items():
        if name == "build":
            content[name] |= value
        else:
            content[name] = value


def _out_of(item: dataclasses.Field[Any]) -> str:
    """The choices of a list, for which the usage line has no room."""
    choices = item.metadata.get("choices", ())
    return f", out of {' '.join(choices)}" if choices and isinstance(item.default, tuple) else ""


def _metavar(item: FlaggedField) -> str:
    if item.choices and not item.several:
        return "{" + ",".join(item.choices) + "}"
    if item.value_type is _named_number:
        return "NAME=ALPHA"
    return "N" if item.value_type in (int, float) else item.name.upper().rstrip("S")


def flag_of(section: str, name: str) -> str:
    """The flag of one recipe field."""
    return next(item.flag for item in flagged_fields() if (item.section, item.name) == (section, name))


def _stated_by_file(path: Path | None) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """What a recipe file states, checked, without the limits that it leaves out; and (section, name) of each field."""
    if path is None:
        return {}, set()
    whole = Recipe.load(path).to_dict()

    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    content = {name: whole[name] for name in raw}
    if "build" in raw:
        content["build"] = {name: whole["build"][name] for name in raw["build"]}
    parts = {name: value for name, value in raw.items() if isinstance(value, dict)}
    inner = {(section, name) for section, part in parts.items() for name in part if name != "kind"}
    return content, {("", name) for name in raw if name != "build"} | inner


def _shown(value: Any) -> str:
    """A value as the flag is typed."""
    if isinstance(value, dict):
        return str(value["kind"]) if "kind" in value else _shown([f"{name}={number}" for name, number in value.items()])
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "nothing"
    return NONE if value is None or value == "" else str(value)
