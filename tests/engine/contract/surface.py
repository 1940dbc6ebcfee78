"""Prints, as JSON, every public name of a TensorRT module: its classes' members and their signatures.

Run in a process of its own: ``python surface.py MODULE [PATH ...]``, the paths being searched first.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from types import ModuleType


def surface(module: ModuleType) -> dict[str, dict[str, str]]:
    """``{class name: {member: signature}}``; other module attributes are under the empty class name."""
    found: dict[str, dict[str, str]] = {"": {}}
    for name in public(module):
        value = getattr(module, name)
        if not isinstance(value, ModuleType):
            found[""][name] = ""
        if isinstance(value, type):
            found[name] = {member: signature(getattr(value, member)) for member in public(value)}
    return found


def public(holder: object) -> list[str]:
    return [name for name in dir(holder) if not name.startswith("__")]


def signature(member: object) -> str:
    """The first line of a method's documentation, product names left out; pybind11 writes the signature there."""
    text = (getattr(member, "__doc__", None) or "").strip().split("\n")[0] if callable(member) else ""
    return re.sub(r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.", "", text)


if __name__ == "__main__":
    sys.path[:0] = sys.argv[2:]
    print(json.dumps(surface(importlib.import_module(sys.argv[1]))))
