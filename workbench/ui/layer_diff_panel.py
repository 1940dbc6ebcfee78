"""The panel of a layer difference: a heat map of layers and sites, and the chosen tap close up. Computes no error."""

from __future__ import annotations

import base64
import functools
import html
import math
from collections.abc import Callable
from typing import Any, TypeVar

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.evaluation.layer_diff import LayerDiff
from workbench.model.taps import layer_tap, split_tap
from workbench.ui.cell_colors import METRIC_VIEWS, ColoredCells, MetricView, color_cells, scale_gradient
from workbench.ui.heat_map import HeatMap
from workbench.ui.tap_plot import plot_tap, to_png

Callback = TypeVar("Callback", bound=Callable[..., None])


def shows_errors(callback: Callback) -> Callback:
    """A widget callback whose exception appears in the panel's status line: Jupyter shows it nowhere."""

    @functools.wraps(callback)
    def guarded(panel: LayerDiffPanel, *args: Any) -> None:
        try:
            callback(panel, *args)
        except WorkbenchError as error:
            panel.show_error(str(error))
        except Exception as error:
            panel.show_error(f"{type(error).__name__}: {error}. Choose another tap, or run the cell again")

    return guarded  # type: ignore[return-value]  # functools.wraps keeps the signature


class LayerDiffPanel(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A heat map of one metric, layers by sites; the chosen cell's scatter and error histogram below.

    Args:
        diff: what :meth:`LayerDiff.compare` gave.

    Attributes:
        selected: the chosen tap's name; setting it draws that tap.
        metric: the metric that the map shows, one of ``METRIC_VIEWS``.
    """

    selected = traitlets.Unicode()
    metric = traitlets.Unicode("relative_l2")

    def __init__(self, diff: LayerDiff) -> None:
        self._diff = diff
        self._figure: Figure | None = None
        self._taps = diff.frame.set_index("tap")
        self._grid = diff.grid()
        self._map = HeatMap(rows=list(self._grid.index), columns=[str(layer) for layer in self._grid.columns])
        self._metrics = ipywidgets.Dropdown(
            options=[(view.label, name) for name, view in METRIC_VIEWS.items()],
            description="Map shows",
            style={"description_width": "initial"},
        )
        self._names = ipywidgets.Dropdown(
            options=list(diff.frame["tap"]), description="Tap", style={"description_width": "initial"}
        )
        self._scale, self._status = ipywidgets.HTML(), ipywidgets.HTML()
        self._image = ipywidgets.Image(format="png", layout={"max_width": "1050px", "width": "100%"})
        for widget, name in (
            (self._map, "wb-map"),
            (self._metrics, "wb-metrics"),
            (self._status, "wb-status"),
            (self._image, "wb-tap-plot"),
        ):
            widget.add_class(name)
        head = ipywidgets.HBox([self._metrics, self._names, self._scale], layout={"flex_flow": "row wrap"})
        title = ipywidgets.HTML(f'<div class="wb-line"><b>{html.escape(_title(diff))}</b></div>')
        super().__init__([title, head, self._map, self._status, self._image])
        self._metrics.observe(self._on_metric, "value")
        self._names.observe(self._on_name, "value")
        self._map.observe(self._on_cell, "selected")
        self._draw_map()
        self.selected = diff.first_divergence or _worst(diff.frame)

    @property
    def frame(self) -> pd.DataFrame:
        """The difference's table, one row per tap."""
        return self._diff.frame

    @property
    def figure(self) -> Figure | None:
        """The figure that is shown now: the chosen tap's scatter and histogram."""
        return self._figure

    @property
    def status(self) -> str:
        """The status line as plain text with its markup."""
        return str(self._status.value)

    def show_error(self, message: str) -> None:
        """Say in the status line what went wrong; the plot is taken away, since it belongs to another tap."""
        self._figure = None
        self._image.value = b""
        self._status.value = f'<div class="wb-line wb-error">{html.escape(message)}</div>'

    def __repr__(self) -> str:
        return f"LayerDiffPanel({self._diff!r}, selected={self.selected!r})"

    def _repr_mimebundle_(self, **arguments: Any) -> Any:
        """The widget, and a picture for places that show no widgets."""
        bundle = super()._repr_mimebundle_(**arguments)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["text/plain"] = repr(self)
            data["image/png"] = base64.b64encode(to_png(self._diff.plot())).decode()
        return bundle

    @traitlets.validate("metric")
    def _known_metric(self, proposal: Any) -> str:
        if proposal["value"] not in METRIC_VIEWS:
            raise WorkbenchError(
                f"metric {proposal['value']!r}", allowed=", ".join(METRIC_VIEWS), fix="name one of them"
            )
        return str(proposal["value"])

    # ---- what the user does becomes a trait

    @shows_errors
    def _on_metric(self, change: Any) -> None:
        self.metric = change["new"]

    @shows_errors
    def _on_name(self, change: Any) -> None:
        self.selected = change["new"]

    @shows_errors
    def _on_cell(self, change: Any) -> None:
        row, column = change["new"]
        if row >= 0:
            self.selected = layer_tap(int(self._grid.columns[column]), str(self._grid.index[row]))

    # ---- a trait becomes what the user sees

    @traitlets.observe("metric")
    @shows_errors
    def _metric_changed(self, _change: Any) -> None:
        self._metrics.value = self.metric
        self._draw_map()

    @traitlets.observe("selected")
    @shows_errors
    def _selected_changed(self, _change: Any) -> None:
        self._figure = plot_tap(self._diff, self.selected)
        self._image.value = to_png(self._figure)
        self._image.alt = f"Scatter and error histogram of {self.selected}"
        self._status.value = f'<div class="wb-line">{self._describe(self.selected)}</div>'
        self._names.value = self.selected
        self._map.selected = self._cell_of(self.selected)

    def _cell_of(self, tap: str) -> list[int]:
        layer, site = split_tap(tap)
        if layer is None:
            return [-1, -1]
        return [list(map(str, self._grid.index)).index(site), [int(other) for other in self._grid.columns].index(layer)]

    def _describe(self, tap: str) -> str:
        row: dict[Any, Any] = dict(self._taps.loc[tap])
        words = [f"{view.label} {_number(row[name], view)}" for name, view in METRIC_VIEWS.items()]
        return f"<b>{tap}</b>: {'; '.join(words)}; reference RMS {row['reference_rms']:.3g}"

    def _draw_map(self) -> None:
        view = METRIC_VIEWS[self.metric]
        grid = self._diff.grid(self.metric)
        values = grid.to_numpy(dtype=np.float64)
        cells = color_cells(values, view)
        names = [layer_tap(int(layer), str(site)) for site in grid.index for layer in grid.columns]
        with self._map.hold_sync():
            self._map.label = view.label
            self._map.texts = [
                f"{tap}: {view.label} {_number(value, view)}" for tap, value in zip(names, values.flat, strict=True)
            ]
            self._map.colors = list(cells.colors.flat)
        self._scale.value = _scale(cells, view)


def _title(diff: LayerDiff) -> str:
    state = "the same model" if diff else "NOT the same model"
    return (
        f"{diff.options.candidate_name} ({diff.precision}) against {diff.options.reference_name}: {state}; "
        f"KL of the logits {diff.summary.kl:.2g} nats, same first choice {diff.summary.top1:.1%}, "
        f"first divergence: {diff.first_divergence or 'none'}"
    )


def _worst(frame: pd.DataFrame) -> str:
    """The tap with the largest relative error."""
    return str(frame["tap"].iloc[int(frame["relative_l2"].argmax())])


def _number(value: float, view: MetricView) -> str:
    return "infinite (exact)" if value == math.inf and view.sign < 0 else format(value, view.text)


def _scale(cells: ColoredCells, view: MetricView) -> str:
    if cells.best is None or cells.worst is None:
        return '<div class="wb-scale">every cell is exact</div>'
    return (
        f'<div class="wb-scale"><span>{format(cells.best, view.text)}</span>'
        f'<div class="wb-scale-bar" style="background:{scale_gradient()}"></div>'
        f"<span>{format(cells.worst, view.text)} (worst)</span></div>"
    )
