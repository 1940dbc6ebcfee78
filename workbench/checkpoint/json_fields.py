"""One JSON file of settings, read field by field. Knows nothing about what the fields mean.

Every error names the file, the field, what was expected and what was found.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError

MAX_INTEGER = 2**31 - 1
# Far more than any index of shards; what is larger is no file of settings.
MAX_BYTES = 100_000_000


def parse_json(text: bytes) -> Any:
    """What JSON in UTF-8 says; a name that stands twice in one object is refused, since nothing says which one counts.

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deeply, has a number of too many digits, or a name twice.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice[:80]!r} stands twice")
    return content


class JsonFields:
    """A JSON object with checked access; ``None`` and an absent key are the same.

    Args:
        path: the file, for the messages.
        content: the object.
        prefix: where the object stands inside the file, such as ``workbench.``.
    """

    def __init__(self, path: Path, content: dict[str, Any], prefix: str = "") -> None:
        self.path, self.content, self.prefix = path, content, prefix

    @classmethod
    def read(cls, path: Path) -> JsonFields:
        """The object that a file holds.

        Raises:
            CheckpointError: the file is missing, too large, not JSON, or holds something else than an object.
        """
        if not path.is_file():
            inner = path.parent / "1-gpu"
            fix = f"give {inner}" if (inner / path.name).is_file() else "give the folder of a complete checkpoint"
            raise CheckpointError(f"{path} is missing", fix=fix)
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes", allowed=f"up to {MAX_BYTES:,}")
        try:
            content = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON ({error})", fix="fetch or write it again") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}", allowed="a JSON object")
        return cls(path, content)

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def section(self, name: str) -> JsonFields:
        """A nested object."""
        value = self.content.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return JsonFields(self.path, value, f"{self.prefix}{name}.")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        """A whole number from ``minimum`` to ``maximum``."""
        value = self.content[name] if name in self else default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.wrong(name, f"a whole number from {minimum}")
        if value > maximum:
            raise self.wrong(name, f"a whole number from {minimum} to {maximum}")
        return value

    def optional_id(self, name: str, count: int) -> int | None:
        """A whole number from 0 and below ``count``, the size of the vocabulary; or None."""
        number = self.integer(name, minimum=0) if name in self else None
        if number is not None and number >= count:
            raise self.wrong(name, f"an id of the vocabulary, 0 to {count - 1}, or nothing")
        return number

    def ids(self, name: str, count: int) -> tuple[int, ...]:
        """Like :meth:`integers`, below ``count``: the size of the vocabulary."""
        numbers = self.integers(name)
        if any(number >= count for number in numbers):
            raise self.wrong(name, f"ids of the vocabulary, 0 to {count - 1}")
        return numbers

    def integers(self, name: str) -> tuple[int, ...]:
        """One whole number from 0 or a list of them; an absent field is an empty list."""
        value = self.content.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MAX_INTEGER for item in items):
            raise self.wrong(name, "a whole number from 0, or a list of them")
        return tuple(items)

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.content[name] if name in self else default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_positive(value):
            raise self.wrong(name, "a number above 0")
        return float(value)

    def boolean(self, name: str, *, default: bool | None = None) -> bool:
        """True or false."""
        value = self.content[name] if name in self else default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None, *, allowed: Collection[str] | None = None) -> str:
        """A text, one of ``allowed`` where that is given."""
        value = self.content[name] if name in self else default
        if not isinstance(value, str) or (allowed is not None and value not in allowed):
            raise self.wrong(name, "a text" if allowed is None else " or ".join(map(repr, allowed)))
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of at least one text."""
        value = self.content.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of texts")
        return tuple(value)

    def wrong(self, name: str, expected: str) -> CheckpointError:
        """The error for a field that is not what it must be."""
        found = _shown(self.content[name]) if name in self.content else "nothing"
        return CheckpointError(f"{self.path}: {self.prefix}{name} is {found}", allowed=expected)


def _shown(value: Any) -> str:
    """The beginning of a value; what JSON can hold may be too long, or too deep, to be written whole."""
    if isinstance(value, int) and abs(value) > 10**80:
        return f"a whole number of about {int(value.bit_length() * math.log10(2))} digits"
    try:
        return repr(value)[:80]
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"


def _is_positive(value: float) -> bool:
    try:
        return math.isfinite(value) and value > 0
    except OverflowError:  # a whole number that no float holds
        return False
