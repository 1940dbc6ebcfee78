"""A long job in a notebook: runs in a thread, shows the progress events that a terminal shows, and can be stopped."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets

from workbench.errors import Cancelled, WorkbenchError
from workbench.progress import ProgressEvent

# Widgets need no more than this many updates a second; a build sends thousands of events.
UPDATES_PER_SECOND = 10


class JobPanel(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Start, progress, elapsed and remaining time, stop.

    Args:
        title: what the job does, as the panel shows it.
        job: called in a thread with ``report=``, a :data:`workbench.progress.Reporter`; what it returns is the result.
    """

    def __init__(self, title: str, job: Callable[..., Any]) -> None:
        self._job = job
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._begun = self._shown = 0.0
        self.start_button = ipywidgets.Button(description="Start", button_style="primary", tooltip=f"start: {title}")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True, tooltip=f"stop: {title}")
        self.bar = ipywidgets.FloatProgress(min=0, max=1, layout=ipywidgets.Layout(width="320px"))
        self.status = ipywidgets.HTML(f"{html.escape(title)}: not started")
        self.title = title
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        row = ipywidgets.HBox([self.start_button, self.stop_button, self.bar])
        super().__init__([row, self.status])
        self.add_class("wb-job")

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> JobPanel:
        """Run the job, unless it is running; returns the panel, so that a cell can end with it."""
        if not self.running:
            self._stop.clear()
            self._outcome, self._error = None, None
            self._begun = time.monotonic()
            self.start_button.disabled, self.stop_button.disabled = True, False
            self.bar.bar_style = ""
            self._thread = threading.Thread(target=self._work, name=self.title, daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ask the job to end; it does at its next event, and removes what it had written."""
        if self.running:
            self._stop.set()
            self._say("stopping")

    def result(self, timeout_s: float | None = None) -> Any:
        """What the job returned; waits for its end.

        Raises:
            RuntimeError: it was never started. TimeoutError: it has not ended in time.
            BaseException: what the job raised; Cancelled when it was stopped.
        """
        if self._thread is None:
            raise RuntimeError(f"{self.title} was not started: press Start, or call start()")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.title} has not ended after {timeout_s} s")
        if self._error is not None:
            raise self._error
        return self._outcome

    def _work(self) -> None:
        try:
            self._outcome = self._job(report=self._report)
        except Cancelled as error:
            self._error = error
            self._end("stopped; nothing was left behind", "warning")
        except WorkbenchError as error:
            self._error = error
            self._end(str(error), "danger")
        except Exception as error:
            self._error = error
            self._end(f"{type(error).__name__}: {error}. Mend the cause and press Start again", "danger")
        else:
            self._end("done", "success")

    def _report(self, event: ProgressEvent) -> None:
        if self._stop.is_set():
            raise Cancelled(f"{self.title} was stopped")
        now = time.monotonic()
        if event.depth > 0 or (now - self._shown < 1 / UPDATES_PER_SECOND and event.done < event.total):
            return
        self._shown = now
        share = event.done / event.total if event.total else 0.0
        self.bar.value = share
        left = f", about {(now - self._begun) * (1 - share) / share:.0f} s left" if 0.05 < share < 1 else ""
        amount = f"{event.done:,.0f} of {event.total:,.0f} {event.unit}" if event.total else ""
        self._say(f"{event.task}: {amount}{left}")

    def _end(self, text: str, style: str) -> None:
        self.bar.bar_style = style
        self.bar.value = 1.0 if style == "success" else self.bar.value
        self.start_button.disabled, self.stop_button.disabled = False, True
        self._say(text)

    def _say(self, text: str) -> None:
        elapsed = time.monotonic() - self._begun
        self.status.value = f"<b>{html.escape(self.title)}</b> {elapsed:.0f} s &middot; {html.escape(text)}"
