"""The scripts and styles of widgets: files of this folder, joined in the order given. Knows no widget."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def joined(*names: str) -> str:
    """The contents of files beside this one, one after the other: anywidget takes one text for each widget."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)
