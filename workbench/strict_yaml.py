"""YAML as recipes are written: UTF-8, and no key twice. Knows nothing about recipes."""

from __future__ import annotations

from typing import Any


def read_yaml(text: bytes) -> Any:
    """What a YAML text holds. YAML forbids equal keys in one mapping; its reader alone would take the last of them.

    Raises:
        ValueError: it is no YAML, or not in UTF-8; says where, in one line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: list[Any] = []
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(problem=f"{key.value!r} twice", problem_mark=key.start_mark)
                seen.append(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text.decode(), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
