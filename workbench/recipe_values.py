"""The parts of a recipe as plain values: dataclasses from mappings and back, every value checked. Reads no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from workbench.errors import RecipeError, nearest


def require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of some, with the nearest of them.

    Raises:
        RecipeError: it is none.
    """
    if value not in allowed:
        hint = nearest(str(value), allowed)
        raise RecipeError(f"{name} is {value!r}", allowed=", ".join(allowed), fix=hint or None)


def known_keys(content: Any, cls: type, place: str) -> dict[str, Any]:
    """``content`` as a dictionary whose keys are all fields of ``cls``.

    Raises:
        RecipeError: it is no mapping, or has another key.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(f"{place} is {type(content).__name__}, not a mapping", fix="write 'key: value' lines")
    names = [item.name for item in dataclasses.fields(cls)]
    for key in content:
        if key not in names:
            hint = nearest(str(key), names)
            raise RecipeError(f"{place} has the unknown key {key!r}", allowed=", ".join(names), fix=hint or None)
    return dict(content)


def variant_from(content: Any, name: str, kinds: Mapping[str, type]) -> Any:
    """One of several dataclasses, chosen by ``kind``; null is None.

    Raises:
        RecipeError: no such kind, or a value that it does not take.
    """
    if content is None:
        return None
    if not isinstance(content, Mapping) or "kind" not in content:
        raise RecipeError(
            f"{name} is {content!r}", allowed="null or a mapping with 'kind'", fix=f"write {name}: {{kind: int8}}"
        )
    kind = content["kind"]
    require_one_of(f"{name}.kind", kind, tuple(kinds))
    cls = kinds[kind]
    rest = {key: value for key, value in content.items() if key != "kind"}
    return cls(**typed(known_keys(rest, cls, f"{name} of kind {kind}"), cls, f"{name}."))


def typed(values: dict[str, Any], cls: type, prefix: str) -> dict[str, Any]:
    """``values`` with lists made tuples, each checked against its field's type.

    Raises:
        RecipeError: a value of another type.
    """
    hints = get_type_hints(cls)
    for name, value in values.items():
        hint = hints[name]
        if hint == tuple[str, ...]:
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise RecipeError(f"{prefix}{name} is {value!r}", allowed="a list of names")
            values[name] = tuple(value)
        elif hint == Mapping[str, float]:
            values[name] = as_numbers(value, prefix + name)
        elif hint is float:
            values[name] = as_number(value, prefix + name)
        elif not isinstance(value, get_args(hint) or hint) or (hint is int and isinstance(value, bool)):
            wanted = {int: "a whole number", str: "a text"}.get(hint, str(hint))
            raise RecipeError(f"{prefix}{name} is {value!r}", allowed=wanted)
    return values


def as_number(value: Any, name: str) -> float:
    """A whole or real number, no truth value.

    Raises:
        RecipeError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecipeError(f"{name} is {value!r}", allowed="a number")
    return float(value)


def as_numbers(value: Any, name: str) -> dict[str, float]:
    """A mapping of names to numbers.

    Raises:
        RecipeError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise RecipeError(f"{name} is {value!r}", allowed="a mapping of names to numbers")
    return {str(key): as_number(item, f"{name}[{str(key)!r}]") for key, item in value.items()}


def variant_to(variant: Any) -> dict[str, Any] | None:
    """The mapping that :func:`variant_from` reads; None is null."""
    if variant is None:
        return None
    values = {item.name: getattr(variant, item.name) for item in dataclasses.fields(variant)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {"kind": variant.kind, **{key: dict(v) if isinstance(v, Mapping) else v for key, v in plain.items()}}
