"""Recipe fields as flags, and flags laid over a recipe file. Nothing else knows which recipe fields exist."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.recipe import BuildLimits, Recipe


@dataclass(frozen=True)
class FlaggedField:
    """One recipe field that is a flag.

    Attributes:
        section: "" for the recipe's own fields, "build" for those of its build limits.
        name: field of that section.
        flag: as typed, with underscores.
        value_type: of one value.
        several: whether the flag takes a list.
        choices: what one value may be; empty when that is no fixed list.
        help, default: for --help.
    """

    section: str
    name: str
    flag: str
    value_type: type
    several: bool
    choices: tuple[str, ...]
    help: str
    default: str

    @property
    def destination(self) -> str:
        """Where argparse leaves the value; a prefix keeps it apart from the commands' own flags."""
        return f"recipe_{self.section}_{self.name}"


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


def flagged_fields() -> Iterator[FlaggedField]:
    """Every recipe field with a flag, in the order of the recipe."""
    for section, owner in (("", Recipe), ("build", BuildLimits)):
        for item in dataclasses.fields(owner):
            for flag in item.metadata.get("flags", ())[:1]:
                yield FlaggedField(
                    section=section,
                    name=item.name,
                    flag=flag,
                    value_type=int if isinstance(item.default, int) else str,
                    several=isinstance(item.default, tuple),
                    choices=tuple(item.metadata.get("choices", ())),
                    help=item.metadata["help"] + _out_of(item),
                    default=_shown(item.default),
                )


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
    """
    content = (Recipe() if base is None else base).to_dict()
    file_content = _stated_by_file(args.recipe)
    stated: set[tuple[str, str]] = set()
    replacements: list[Replacement] = []
    for item in flagged_fields():
        place = content[item.section] if item.section else content
        in_file = file_content.get(item.section, {}) if item.section else file_content
        value = getattr(args, item.destination)
        if item.name in in_file:
            place[item.name] = in_file[item.name]
            stated.add((item.section, item.name))
        if value is None:
            continue
        new = _weights_content(value) if item.name == "weights" else value
        if item.name in in_file and place[item.name] != new:
            replaced = _shown(place[item.name])
            replacements.append(Replacement(item.flag, _shown(new), replaced, args.recipe.name))
        place[item.name] = new
        stated.add((item.section, item.name))
    return GivenRecipe(Recipe.from_dict(content), frozenset(stated), tuple(replacements))


def _out_of(item: dataclasses.Field[Any]) -> str:
    """The choices of a list, for which the usage line has no room."""
    choices = item.metadata.get("choices", ())
    return f", out of {' '.join(choices)}" if choices and isinstance(item.default, tuple) else ""


def _metavar(item: FlaggedField) -> str:
    if item.choices and not item.several:
        return "{" + ",".join(item.choices) + "}"
    return "N" if item.value_type is int else item.name.upper().rstrip("S")


def flag_of(section: str, name: str) -> str:
    """The flag of one recipe field."""
    return next(item.flag for item in flagged_fields() if (item.section, item.name) == (section, name))


def _stated_by_file(path: Path | None) -> dict[str, Any]:
    """What a recipe file states, checked, without the defaults of what it leaves out."""
    if path is None:
        return {}
    whole = Recipe.load(path).to_dict()

    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    stated = {name: whole[name] for name in raw}
    if "build" in raw:
        stated["build"] = {name: whole["build"][name] for name in raw["build"]}
    return stated


def _weights_content(kind: str) -> dict[str, str] | None:
    return None if kind == "none" else {"kind": kind}


def _shown(value: Any) -> str:
    """A value as the flag is typed."""
    if isinstance(value, dict):
        return str(value["kind"])
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "nothing"
    return "none" if value is None or value == "" else str(value)
