"""A field for a number that has limits: what lies beyond becomes the limit, and a note beside the field says so.

ipywidgets' bounded fields do the same without a word, in the browser already. Knows nothing about what is counted.
"""

from __future__ import annotations

import html
from typing import Any

import ipywidgets
import traitlets

POSITIONS = "the model's positions"


class _Limited(traitlets.HasTraits):
    """The part that whole and other numbers share.

    Args:
        value: to begin with.
        low, high: the limits; both are allowed.
        why: what the upper limit is, in words: "the model's positions".
        look: as ipywidgets takes it.

    Attributes:
        note: what happened to the last number; empty where it was taken as it is.
    """

    def __init__(self, value: float, low: float, high: float, why: str = "", **look: Any) -> None:
        self.low, self.high, self._why, self._taken = low, high, why, value
        self.note = ipywidgets.HTML(layout={"margin": "2px 12px 2px 2px"})
        span = f"{low:,.10g} to {high:,.10g}" + (f" ({why})" if why else "")
        told = look.pop("tooltip", "")
        super().__init__(value=value, tooltip=f"{told}, {span}" if told else span, **look)

    @property
    def row(self) -> Any:
        """The field with its note beside it."""
        return ipywidgets.HBox([self, self.note], layout={"align_items": "center", "grid_gap": "0 6px"})

    @traitlets.validate("value")
    def _within(self, proposal: Any) -> Any:
        value = proposal["value"]
        kept = min(max(value, self.low), self.high)
        taken, self._taken = self._taken, kept
        if kept == value:
            # A panel that shows the limit again, as its state has it, takes no word back.
            if value != taken:
                self.note.value = ""
            return value
        limit = f"{kept:,.10g} is the most" + (f": {self._why}" if self._why else "")
        words = html.escape(limit if kept < value else f"{kept:,.10g} is the least", quote=False)
        self.note.value = f'<span class="wb-about wb-limit" role="status">{words}</span>'
        return kept


class LimitedInt(_Limited, ipywidgets.IntText):  # type: ignore[misc]  # ipywidgets has no types
    """A field for a whole number."""


class LimitedFloat(_Limited, ipywidgets.FloatText):  # type: ignore[misc]  # ipywidgets has no types
    """A field for any number."""
