"""The work that the KV panel needs before it can show errors: a calibration, then the study. Shows no result."""

from __future__ import annotations

import ipywidgets

from workbench.bench.bench import QUICK_LOOK, Bench
from workbench.bench.job import Job
from workbench.bench.state import BenchState
from workbench.ui.job_panel import JobPanel
from workbench.ui.widget_tree import put


class KVStudyBox(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """The job that is under way, with progress and stop; empty where nothing is missing.

    Args:
        state: on a Bench what is missing is collected; elsewhere it must be assigned.

    Attributes:
        job: the one that was needed last; None before any was.
    """

    def __init__(self, state: BenchState) -> None:
        self._state = state
        self.job: Job | None = None
        super().__init__()
        self.add_class("wb-kv-study")

    def collect(self) -> None:
        """Start what is missing, unless it is under way, here or for another panel.

        A job that was stopped, or failed, waits for its button.
        """
        state = self._state
        if not isinstance(state, Bench) or self._has_study():
            self._show()
            return
        wanted = state.calibrate(QUICK_LOOK) if state.calibration is None else state.study_kv()
        kind = wanted.title.partition(":")[0]  # whatever text another panel calibrates on
        if self.job is not None and self.job.title.startswith(kind) and self.job.state not in ("idle", "done"):
            return
        under_way = state.jobs.find(kind)
        self.job = under_way or wanted
        self._show(JobPanel(self.job))
        if under_way is None:
            self.job.start()
        elif self._has_study():  # it has ended meanwhile
            self._show()

    def _has_study(self) -> bool:
        return self._state.kv_study is not None

    def _show(self, *panels: JobPanel) -> None:
        put(self, *panels)

    def wait(self, timeout_s: float) -> None:
        """Wait for the end of what is under way.

        Raises:
            TimeoutError: it takes longer.
        """
        while self.job is not None and self.job.running:  # after the calibration comes the study
            self.job.wait(timeout_s)
