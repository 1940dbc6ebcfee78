"""What a person says to calibrate: the data, how much of it, and the button; the job beside it. Calibrates nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets

from workbench.bench.bench import QUICK_LOOK, Bench, CalibrationRequest
from workbench.bench.job import Job
from workbench.errors import RecipeError
from workbench.quantization.texts import BUILT_IN
from workbench.ui.job_panel import JobPanel
from workbench.ui.limited_number import POSITIONS, LimitedInt
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.widget_tree import put

_WIDE = {"description_width": "initial"}
_CALIBRATE = "calibrate"


class CalibrateBox(Panel):
    """Data, samples, length, and a button; calibrations that are in the cache are offered.

    Args:
        bench: whose calibration it is.

    Attributes:
        job: the calibration that was asked for last; None before.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.job: Job | None = None
        longest = bench.config.max_position_embeddings
        self.data = ipywidgets.Dropdown(
            options=[(BUILT_IN, "built-in"), ("a file or a dataset", "named")],
            description="Text to calibrate on",
            style=_WIDE,
            layout={"width": "300px"},
        )
        self.name = ipywidgets.Text(
            placeholder="notes.txt, data.jsonl, data.parquet, or a dataset: NAME or NAME:CONFIG",
            description="File or dataset",
            style=_WIDE,
            layout={"width": "520px", "display": "none"},
            continuous_update=False,
        )
        self.column = ipywidgets.Text(
            placeholder="text",
            description="Column that holds the text",
            style=_WIDE,
            layout={"width": "290px", "display": "none"},
            continuous_update=False,
        )
        amount: dict[str, Any] = {"style": _WIDE, "layout": {"width": "190px"}}
        self.samples = LimitedInt(CalibrationRequest.samples, 1, 100_000, description="Windows", **amount)
        least = min(8, longest)
        self.length = LimitedInt(
            min(CalibrationRequest.length, longest), least, longest, POSITIONS, description="Tokens in each", **amount
        )
        self.button = ipywidgets.Button(
            description="Calibrate",
            icon="play",
            button_style="primary",
            tooltip="run the model over this text and keep what every layer's inputs and outputs reach",
        )
        self.cached = ipywidgets.Dropdown(description="In the cache", style=_WIDE, layout={"width": "420px"})
        self._place = ipywidgets.VBox()
        row = {"flex_flow": "row wrap"}
        asked = ipywidgets.HBox([self.data, self.samples.row, self.length.row, self.button], layout=row)
        super().__init__(
            [asked, ipywidgets.HBox([self.name, self.column], layout=row), self.cached, self._place], "wb-calibrate"
        )
        self.show_cached()
        self.data.observe(self._on_data, "value")
        self.button.on_click(self._on_calibrate)
        self.cached.observe(self._on_cached, "value")
        self.watch(bench, self._calibration_changed, "calibration")
        self._show_running()

    def request(self) -> CalibrationRequest:
        """What the widgets say.

        Raises:
            RecipeError: a file or a dataset is wanted, and none is named.
        """
        size = (self.samples.value, self.length.value)
        tune = min(CalibrationRequest.tune, max(1, self.samples.value))
        if self.data.value == "built-in":
            return CalibrationRequest(None, *size, tune=tune)
        if not self.name.value.strip():
            raise RecipeError("no file or dataset is named", fix="write the path of a file, or the name of a dataset")
        return CalibrationRequest(self.name.value.strip(), *size, tune=tune, column=self.column.value.strip() or None)

    def run(self, request: CalibrationRequest) -> Job:
        """Start a calibration, unless one that was asked for here is under way; returns the job."""
        if self.job is not None and self.job.running:
            self.say(f"{self.job.title} is under way: stop it first, or wait for its end")
            return self.job
        self.say("")
        self.job = self._bench.calibrate(request)
        put(self._place, JobPanel(self.job, again=False).start())
        return self.job

    def show_cached(self) -> None:
        """Offer what the cache holds now."""
        found = self._bench.calibrations()
        now = self._bench.calibration
        options = [(name, str(folder)) for name, folder in reversed(found.items())]
        current = str(now.folder) if now is not None and now.folder is not None else ""
        if now is not None and current not in [folder for _, folder in options]:
            options.insert(0, (now.name, current))
        with self.showing():
            self.cached.options = options or [("nothing yet", "")]
            self.cached.value = current if options and current else self.cached.options[0][1]
            self.cached.disabled = len(options) < 2

    def _show_running(self) -> None:
        """A calibration that another panel of this bench has started."""
        running = self._bench.jobs.running
        if running is not None and running.title.startswith(_CALIBRATE):
            self.job = running
            put(self._place, JobPanel(running, again=False))

    @property
    def quick_look_needed(self) -> bool:
        """Whether there is nothing to look at, and nothing on its way."""
        return self._bench.calibration is None and self.job is None

    def quick_look(self) -> Job:
        """Start the calibration that takes seconds."""
        return self.run(QUICK_LOOK)

    # ---- what the user does

    @from_user
    def _on_data(self, _change: Any) -> None:
        shown = None if self.data.value == "named" else "none"
        self.name.layout.display = self.column.layout.display = shown

    @shows_errors
    def _on_calibrate(self, _button: Any) -> None:
        self.run(self.request())

    @from_user
    def _on_cached(self, change: Any) -> None:
        try:
            if change["new"]:
                self._bench.use_calibration(Path(change["new"]))
        finally:
            self.show_cached()  # the choice goes back when the folder is gone

    @shows_errors
    def _calibration_changed(self, _change: Any) -> None:
        self.show_cached()

    def __repr__(self) -> str:
        return f"CalibrateBox({self._bench.model_dir.name})"
