"""What the alpha panel asks for: one smoothing group as the recipe has it, then its curve and its neighbours. Shows
nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from workbench.bench.alpha_book import AlphaBook, without
from workbench.bench.state import group_name, groups_of, split_group
from workbench.errors import RecipeError
from workbench.progress import ProgressEvent, Reporter
from workbench.quantization.range_counter import input_linear
from workbench.recipe import SMOOTHING_GROUPS, SmoothQuant
from workbench.ui.alpha_charts import GroupPicture


@dataclass(frozen=True)
class Wanted:
    """All that the shown errors depend on.

    Attributes:
        book: computes them.
        name: the group (``layers.12.down``).
        how: the recipe's smoothing.
    """

    book: AlphaBook
    name: str
    how: SmoothQuant

    def picture(self) -> GroupPicture:
        """The group at its alpha and without smoothing, and its curve where that is known.

        Raises:
            RecipeError, CheckpointError: as :meth:`workbench.quantization.alpha_search.AlphaSearch.error`.
        """
        place, book, how = split_group(self.name), self.book, self.how
        known = book.known_curve(*place, how)
        return GroupPicture(self.name, book.error(*place, how), book.unsmoothed(*place, how), known)

    def with_rest(self, picture: GroupPicture, report: Reporter) -> GroupPicture:
        """The picture with its curve; the layer's other groups are computed too, with and without smoothing.

        Raises:
            Cancelled: the reporter stopped it; what was computed is kept in the book.
        """
        layer, group = split_group(self.name)
        whole = dataclasses.replace(picture, curve=self.book.curve(layer, group, self.how, report))
        for other in SMOOTHING_GROUPS:
            for how in (self.how, without(self.how, other)):
                report(ProgressEvent("errors", 0, 0))
                if self.book.known_error(layer, other, how) is None:
                    self.book.error(layer, other, how)
        return whole


def group_meant(tap: str, shown: str, num_layers: int) -> str | None:
    """The smoothing group of a linear layer or its input; of several the one that is shown, else the first."""
    try:
        places = groups_of(input_linear(tap) or tap, num_layers) if tap else []
    except RecipeError:
        places = []
    names = [group_name(*place) for place in places]
    return shown if shown in names else next(iter(names), None)
