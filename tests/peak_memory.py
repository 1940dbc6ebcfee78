"""The anonymous memory of this process (no pages of mapped files), and its peak while something runs. Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def figures_of_fresh_process(script: str, *words: str | Path) -> dict[str, float]:
    """What a script prints as JSON when it runs in a process of its own."""
    command = [sys.executable, script, *map(str, words)]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


class Peak:
    """The largest RssAnon while the block runs, sampled every 2 ms."""

    def __enter__(self) -> Peak:
        self.bytes, self._stop = anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
