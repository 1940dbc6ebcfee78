"""Progress events as bars on a terminal; nothing when the stream is piped or redirected."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from workbench.progress import ProgressEvent

if TYPE_CHECKING:
    from tqdm import tqdm


class ProgressBars:
    """A reporter that draws one bar per nesting level and wipes them when the job is over.

    Use it as a context manager, so that an error message starts on a clean line.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._bars: dict[int, tqdm[Any]] = {}

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close_from(0)

    def __call__(self, event: ProgressEvent) -> None:
        if not self._shown:
            return
        bar = self._bars.get(event.depth)
        if bar is None or bar.desc != event.task or bar.total != (event.total or None):
            self._close_from(event.depth)
            bar = self._bars[event.depth] = self._open(event)
        bar.n = event.done
        bar.refresh()

    def _open(self, event: ProgressEvent) -> tqdm[Any]:
        from tqdm import tqdm

        bar: tqdm[Any] = tqdm(
            total=event.total or None,
            unit=event.unit,
            unit_scale=event.unit == "B",
            file=self._stream,
            position=event.depth,
            leave=False,
            dynamic_ncols=True,
        )
        bar.set_description_str(event.task, refresh=False)
        return bar

    def _close_from(self, depth: int) -> None:
        for level in sorted((level for level in self._bars if level >= depth), reverse=True):
            self._bars.pop(level).close()
