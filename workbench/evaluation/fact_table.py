"""A few facts as a small HTML table, for results that a notebook's cell ends with. Formats no numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping


def fact_table(facts: Mapping[str, str]) -> str:
    """Two columns, what and how much; texts are escaped."""
    rows = (
        f'<tr><th style="text-align:left">{html.escape(name)}</th><td>{html.escape(text)}</td></tr>'
        for name, text in facts.items()
    )
    return f"<table>{''.join(rows)}</table>"
