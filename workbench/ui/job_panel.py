"""A long job in a notebook: start, progress, elapsed and remaining time, stop. Runs nothing itself."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from workbench.bench.job import ENDED, Job
from workbench.ui.widget_tree import close_parts

_STYLES = {"done": "success", "stopped": "warning", "failed": "danger"}
_SHOWN = ["state", "message", "event"]


class JobPanel(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Start and stop buttons, a bar, and a line that says what is going on.

    Args:
        job: the job; or the title of one, which then does ``work``.
        work: called in a thread with ``report=``, a :data:`workbench.progress.Reporter`.
        again: offers a button that starts it, once more too; leave it out where other buttons start jobs.
        action: what that button says; "again" follows when the job has ended.
        next_action: what it says then instead, where a next run is another one ("Compare").

    Attributes:
        job: the job that is shown.
    """

    def __init__(
        self,
        job: Job | str,
        work: Callable[..., Any] | None = None,
        *,
        again: bool = True,
        action: str = "Start",
        next_action: str = "",
    ) -> None:
        if isinstance(job, str):
            if work is None:
                raise TypeError("JobPanel needs a Job, or a title and a function")
            job = Job(job, work)
        self.job = job
        self.title = job.title
        self._actions = action, next_action or f"{action} again"
        self.start_button = ipywidgets.Button(
            description=action, button_style="primary", tooltip=f"start: {job.title}", icon="play"
        )
        self.stop_button = ipywidgets.Button(
            description="Stop", disabled=True, tooltip=f"stop: {job.title}", icon="stop"
        )
        self.bar = ipywidgets.FloatProgress(min=0, max=1, layout=ipywidgets.Layout(width="320px"))
        self.status = ipywidgets.HTML()
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        if not again:
            self.start_button.layout.display = "none"
        super().__init__([ipywidgets.HBox([self.start_button, self.stop_button, self.bar]), self.status])
        self.add_class("wb-job")
        job.observe(self._show, _SHOWN)
        self._show()

    @property
    def running(self) -> bool:
        """Whether the job is under way."""
        return self.job.running

    def start(self) -> JobPanel:
        """Run the job, unless it is running; returns the panel, so that a cell can end with it."""
        self.job.start()
        return self

    def stop(self) -> None:
        """Ask the job to end; it does at its next event, and removes what it had written."""
        self.job.stop()

    def result(self, timeout_s: float | None = None) -> Any:
        """What the job returned; waits for its end. See :meth:`workbench.bench.job.Job.result`."""
        return self.job.result(timeout_s)

    def close(self) -> None:
        """Take the widgets away, and hear nothing more of the job, which goes on."""
        job: Job | None = getattr(self, "job", None)  # a panel whose arguments were refused has none
        if job is not None:
            with contextlib.suppress(ValueError):  # closed before
                job.unobserve(self._show, _SHOWN)
        close_parts(self)
        super().close()

    def _show(self, _change: Any = None) -> None:
        """Runs in the job's thread."""
        job = self.job
        busy = job.state in ("waiting", "running", "stopping")
        self.start_button.disabled, self.stop_button.disabled = busy, not busy or job.stop_asked
        self.start_button.description = self._actions[job.state in ENDED]
        self.bar.bar_style = _STYLES.get(job.state, "")
        self.bar.value = job.share
        left = "" if job.remaining_s is None else f", about {job.remaining_s:.0f} s left"
        if job.state == "idle":
            self.status.value = f"{html.escape(job.title)}: not started"
            return
        told = html.escape(job.message + left)
        if job.state == "failed":
            told = f'<span class="wb-error" role="alert">{told}</span>'
        self.status.value = f"<b>{html.escape(job.title)}</b> {job.elapsed_s:.0f} s &middot; {told}"
