"""What every panel is: a box with a status line, guarded callbacks, work beside the kernel, and a static picture.

Computes nothing of its own, and knows no panel by name.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ipywidgets
import pandas as pd

from workbench.errors import Cancelled, WorkbenchError
from workbench.ui.chart import to_png
from workbench.ui.widget_tree import close_parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# So long a cell's output waits for what a static picture shows; a widget must not keep a person waiting.
PICTURE_S = 3.0
# Rows of a table that stands where there is neither a widget nor a picture.
TABLE_ROWS = 40

Callback = TypeVar("Callback", bound=Callable[..., None])


def shows_errors(callback: Callback) -> Callback:
    """A widget callback whose exception appears in the panel's status line: Jupyter shows it nowhere."""

    @functools.wraps(callback)
    def guarded(panel: Panel, *args: Any) -> None:
        with panel.guard():
            callback(panel, *args)

    return guarded  # type: ignore[return-value]  # functools.wraps keeps the signature


def from_user(callback: Callback) -> Callback:
    """As :func:`shows_errors`, for a widget's events: those that :meth:`Panel.showing` causes are passed over."""

    @functools.wraps(callback)
    def guarded(panel: Panel, *args: Any) -> None:
        if not panel.is_showing:
            with panel.guard():
                callback(panel, *args)

    return guarded  # type: ignore[return-value]  # functools.wraps keeps the signature


class Panel(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A box of widgets over some state.

    Subclasses build their widgets, call ``super().__init__(children)``, and watch the state's traits with
    :meth:`watch`. What a user does becomes a trait of the state (in a :func:`from_user` callback); a trait of the state
    becomes what the user sees (in a :func:`shows_errors` callback, its widgets set inside :meth:`showing`).

    Attributes:
        drawing: held while several widgets are set that belong together, and around everything that :meth:`compute`
            shows: two threads never draw at once. Whoever holds it changes no recipe and waits for no work.
        closed: whether :meth:`close` was called.
    """

    def __init__(self, children: Sequence[ipywidgets.Widget], css_class: str = "") -> None:
        self._own = threading.local()
        self.drawing, self.closed = threading.RLock(), False
        self._watched: list[tuple[Any, Callable[[Any], None], list[str]]] = []
        self._workers: dict[str, _Newest] = {}
        self._status = ipywidgets.HTML()
        self._status.add_class("wb-status")
        super().__init__([*children, self._status])
        self.add_class("wb-panel")
        if css_class:
            self.add_class(css_class)

    # ---- what a user goes on with in code

    @property
    def frame(self) -> pd.DataFrame:
        """The table behind what is shown; empty while there is nothing."""
        return pd.DataFrame()

    @property
    def figure(self) -> Figure | None:
        """What is shown as a matplotlib figure; None while there is nothing."""
        return None

    # ---- status and errors

    @property
    def status(self) -> str:
        """The status line, with its markup."""
        return str(self._status.value)

    def say(self, text: str) -> None:
        """Show a sentence in the status line; empty clears it."""
        self._status.value = f'<div class="wb-line">{html.escape(text)}</div>' if text else ""

    def show_error(self, message: str) -> None:
        """Say in the status line what went wrong and what to do."""
        self._status.value = f'<div class="wb-line wb-error" role="alert">{html.escape(message)}</div>'

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Errors become the status line."""
        try:
            yield
        except Cancelled:
            self.say("stopped")
        except WorkbenchError as error:
            self.show_error(str(error))
        except Exception as error:
            self.show_error(f"{type(error).__name__}: {error}. Choose something else, or run the cell again")

    # ---- from the state to the widgets

    @property
    def is_showing(self) -> bool:
        """Whether this thread is putting the state into widgets, so that their events are not a user's."""
        return getattr(self._own, "depth", 0) > 0

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Widgets that are set inside do not count as a user's doing (in this thread)."""
        self._own.depth = getattr(self._own, "depth", 0) + 1
        try:
            yield
        finally:
            self._own.depth -= 1

    def watch(self, state: Any, callback: Callable[[Any], None], *names: str) -> None:
        """Call back when a trait of the state changes, until the panel is closed."""
        state.observe(callback, list(names))
        self._watched.append((state, callback, list(names)))

    def close(self) -> None:
        """Stop watching, and take the widgets away, all that the panel is made of; jobs that are under way go on."""
        self.closed = True
        # A panel whose construction failed is closed as well, when its memory is freed.
        watched: list[Any] = getattr(self, "_watched", [])
        for state, callback, names in watched:
            with contextlib.suppress(ValueError):
                state.unobserve(callback, names)
        watched.clear()
        close_parts(self)
        super().close()

    # ---- work beside the kernel

    def compute(self, work: Callable[[], Any], show: Callable[[Any], None], kind: str = "") -> None:
        """Run ``work`` in a thread and hand what it gives to ``show`` there; errors become the status line.

        Of several requests of one kind only the newest is worked on next, and only the newest is shown.
        """
        if kind not in self._workers:
            self._workers[kind] = _Newest(self)
        self._workers[kind].request(work, show)

    def settle(self, timeout_s: float = 30.0) -> None:
        """Wait until everything that :meth:`compute` was given is shown.

        Raises:
            TimeoutError: it takes longer.
        """
        self._settle(timeout_s)

    @property
    def is_computing(self) -> bool:
        """Whether something that :meth:`compute` was given is not shown yet."""
        return any(worker.busy for worker in list(self._workers.values()))

    def _settle(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        # What is shown may ask for more.
        while busy := [worker for worker in list(self._workers.values()) if worker.busy]:
            for worker in busy:
                if not worker.wait(end - time.monotonic()):
                    raise TimeoutError(f"the panel is still computing after {timeout_s} s")

    # ---- places that show no widgets

    def _repr_mimebundle_(self, **arguments: Any) -> Any:
        """The widget; for places that show none, a text and a picture, or a table where there is no picture.

        Waits up to :data:`PICTURE_S` for what is being computed, so that a cell that has just made the panel has it.
        """
        with contextlib.suppress(TimeoutError):
            self._settle(PICTURE_S)  # not for jobs: a person watches those in the widget
        bundle = super()._repr_mimebundle_(**arguments)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["text/plain"] = repr(self)
            with contextlib.suppress(Exception):  # a picture that fails must not take the widget away
                if (figure := self.figure) is not None:
                    data["image/png"] = base64.b64encode(to_png(figure)).decode()
                elif not (frame := self.frame).empty:
                    data["text/html"] = _table(repr(self), frame)
        return bundle


class _Newest:
    """One thread that works on the newest request, and drops those that it did not come to."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._state = threading.Condition()
        self._next: tuple[Callable[[], Any], Callable[[Any], None]] | None = None
        self.busy = False

    def request(self, work: Callable[[], Any], show: Callable[[Any], None]) -> None:
        with self._state:
            self._next = (work, show)
            if not self.busy:
                self.busy = True
                threading.Thread(target=self._run, daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Whether nothing is left to do within this time."""
        with self._state:
            return self._state.wait_for(lambda: not self.busy, max(timeout_s, 0.0))

    def _run(self) -> None:
        while True:
            with self._state:
                if self._next is None:
                    self.busy = False
                    self._state.notify_all()
                    return
                (work, show), self._next = self._next, None
            with self._panel.guard():
                result = work()
                with self._panel.drawing:
                    if not self._outdated():
                        show(result)

    def _outdated(self) -> bool:
        with self._state:
            return self._next is not None


def _table(title: str, frame: pd.DataFrame) -> str:
    """A title and the first rows of a table as HTML."""
    table = frame.head(TABLE_ROWS).to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}")
    left_out = len(frame) - TABLE_ROWS
    return f"<div>{html.escape(title)}</div>{table}" + (f"<div>{left_out} more rows</div>" if left_out > 0 else "")
