"""How quickly the bench answers: first pictures, a slider's step in a real browser, tuning of all groups.

A command, not a test: ``python tests/notebooks/measure_bench.py demo/model``. Needs Chromium. Prints JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from lab import command, open_notebook, running_lab

FIRST_PICTURE = """
import sys, time
begun = time.time()
import workbench as wb
panel = wb.open(sys.argv[1]).ranges()
panel.settle(300)
assert len(panel.frame)
print(time.time() - begun)
"""
TUNE = """
import sys, time
import workbench as wb
bench = wb.open(sys.argv[1])
begun = time.time()
found = bench.tune().start().result()
print(time.time() - begun)
"""
NOTEBOOK = """
import workbench as wb
bench = wb.open({model!r})
bench.alpha(group="layers.12.down")
"""
# Resolves with the time from a key's press to the next change of the first chart.
STEP_MS = """() => new Promise((resolve) => {
    const chart = document.querySelector(".wb-alpha .wb-chart");
    const begun = performance.now();
    const watch = new MutationObserver(() => { watch.disconnect(); resolve(performance.now() - begun); });
    watch.observe(chart, {subtree: true, childList: true, attributes: true});
})"""
STEPS = 12


def main() -> None:
    model = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        found: dict[str, Any] = {
            "first_picture_s": _printed(FIRST_PICTURE, model, cache),
            "first_picture_cached_s": _printed(FIRST_PICTURE, model, cache),
            "tune_all_groups_s": _printed(TUNE, model, cache),
        }
        os.environ["WORKBENCH_CACHE"] = str(cache)
        steps = _slider_steps(Path(folder), model)
        found |= {"slider_step_ms": statistics.median(steps), "slowest_slider_step_ms": max(steps)}
    found["load"] = os.getloadavg()
    print(json.dumps(found, indent=1))


def _printed(program: str, model: Path, cache: Path) -> float:
    """What a fresh interpreter prints."""
    environment = os.environ | {"WORKBENCH_CACHE": str(cache)}
    run = subprocess.run(
        [sys.executable, "-c", program, str(model)], env=environment, check=True, capture_output=True, text=True
    )
    return float(run.stdout.split()[-1])


def _slider_steps(folder: Path, model: Path) -> list[float]:
    """Milliseconds from a key's press on a slider to the new picture, in the browser."""
    root = folder / "root"
    root.mkdir()
    cell = nbformat.v4.new_code_cell(NOTEBOOK.format(model=str(model)).strip())
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), root / "measure.ipynb")
    with running_lab(root, folder / "jupyter") as lab, open_notebook(lab, "measure.ipynb") as page:
        command(page, "notebook:run-all-cells")
        page.locator(".wb-alpha .wb-chart path").first.wait_for(timeout=60_000)
        page.locator(".wb-alpha-down .noUi-handle").focus()
        time.sleep(3)
        steps = []
        for _ in range(STEPS):
            page.evaluate(f"() => {{ window.wbStep = ({STEP_MS})(); }}")
            page.keyboard.press("ArrowLeft")
            steps.append(float(page.evaluate("() => window.wbStep")))
            time.sleep(1)
    return steps


if __name__ == "__main__":
    main()
