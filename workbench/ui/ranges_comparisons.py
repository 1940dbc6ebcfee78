"""What can stand beside a calibration's ranges: other ranges, the same after smoothing, another calibration.

Knows no widget; fetching one reads weights or a file, so that a panel does it beside the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from workbench.bench.bench import Bench
from workbench.errors import Cancelled, WorkbenchError, nearest
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.ranges import ActivationRanges
from workbench.ui.ranges_charts import Seen

# What a panel's ``compare`` may be, besides DATA + NAME.
NOTHING, GIVEN, SMOOTHING, DATA = "", "given", "smoothing", "data:"
AFTER_SMOOTHING = "after smoothing"


class Comparisons:
    """What can stand beside the ranges of a state.

    Args:
        bench: whose calibrations and smoothing are offered; None offers none.
        given: ranges that a caller brought along.
    """

    def __init__(self, bench: Bench | None, given: ActivationRanges | None) -> None:
        self._bench, self._given = bench, given

    def choices(self) -> dict[str, str]:
        """What there is now: its name in a menu -> what it is called in code."""
        found = {"nothing": NOTHING}
        if self._given is not None:
            found["the other ranges"] = GIVEN
        if self._bench is not None:
            found["after smoothing by the recipe"] = SMOOTHING
            now = self._bench.calibration
            others = [name for name in self._bench.calibrations() if now is None or name != now.name]
            found |= {f"calibration: {name}": DATA + name for name in others}
        return found

    def named(self, against: str | ActivationRanges) -> str:
        """What a caller means.

        Raises:
            WorkbenchError: nothing is called so.
        """
        if not isinstance(against, str):
            return GIVEN
        values = list(self.choices().values())
        found = next((value for value in (against, DATA + against) if value in values), None)
        if found is None:
            names = [value.removeprefix(DATA) for value in values if value]
            raise WorkbenchError(
                f"nothing to compare with is called {against!r}",
                allowed=", ".join(names) or "nothing: there is no other calibration of this model",
                fix=nearest(against, names) or "bench.calibrations() lists what is there",
            )
        return found

    def fetch(self, compare: str, report: Reporter = silent) -> Seen:
        """The ranges themselves, with their table.

        Raises:
            WorkbenchError: the calibration is gone, or cannot be read.
            Cancelled: the reporter, which is told the layers that are smoothed, stopped it.
        """
        if compare == GIVEN and self._given is not None:
            return Seen.of(title(self._given), self._given)
        if self._bench is None:
            raise WorkbenchError(f"nothing to compare with is called {compare!r}", fix="choose another")
        if compare == SMOOTHING:
            return Seen.of(AFTER_SMOOTHING, self._bench.smoothed_ranges(report))
        name = compare.removeprefix(DATA)
        folder = self._bench.calibrations().get(name)
        if folder is None:
            raise WorkbenchError(f"the calibration {name!r} is gone", fix="choose another, or calibrate again")
        return Seen.of(name, self._bench.load_calibration(folder).ranges)


def while_wanted(is_wanted: Callable[[], bool], say: Callable[[str], None]) -> Reporter:
    """A reporter that says which layer is being smoothed, and ends the work when nobody wants it any more.

    Raises:
        Cancelled: in the work, at its next event after ``is_wanted`` turned false.
    """

    def report(event: ProgressEvent) -> None:
        if not is_wanted():
            raise Cancelled("something else is wanted by now")
        say(f"smoothing: layer {event.done:.0f} of {event.total:.0f}")

    return report


def title(ranges: ActivationRanges) -> str:
    """What ranges are of."""
    return " and ".join(f"{each.dataset}, {each.windows} x {each.length} tokens" for each in ranges.source)
