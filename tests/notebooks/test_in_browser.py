"""The first notebook in a real JupyterLab: a click on a cell of the heat map draws another tap.

Screenshots go to the git-ignored folder ``screenshots/``: look at them when the panel has changed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lab import find_chromium, open_notebook, running_lab

CHROMIUM = find_chromium()
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
COMMAND_MS = 240_000
NOTEBOOK = "00_start_here.ipynb"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]


def test_a_click_draws_another_tap(notebooks, tmp_path):
    SCREENSHOTS.mkdir(exist_ok=True)
    assert CHROMIUM is not None
    with (
        running_lab(notebooks.parent, tmp_path / "jupyter") as lab,
        open_notebook(lab, f"notebooks/{NOTEBOOK}", CHROMIUM) as page,
    ):
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        _command(page, "application:toggle-left-area")
        assert _command(page, "notebook:run-all-cells"), "a cell failed, or all of them took too long"
        panel = _Panel(page)
        first = panel.picture()

        panel.cell(9, 3).click()
        panel.wait_for("layers.3.mlp.gate_up")
        second = panel.wait_for_picture_other_than(first)
        assert panel.fits()

        panel.press("ArrowDown", "ArrowRight", "Enter")
        panel.wait_for("layers.4.mlp.act")
        assert panel.wait_for_picture_other_than(second) != first

        panel.choose_metric("signal to noise [dB]")
        page.locator(".wb-heat[aria-label^='signal to noise']").wait_for(timeout=10_000)
        _look(page, panel)
        assert complaints == []


def _look(page, panel):
    """Screenshots in both themes."""
    for theme in ("Light", "Dark"):
        _command(page, "apputils:change-theme", {"theme": f"JupyterLab {theme}"})
        page.wait_for_function(f"document.body.dataset.jpThemeName === 'JupyterLab {theme}'")
        panel.scroll_to()
        page.wait_for_timeout(500)  # style sheets of a theme arrive after its name
        page.screenshot(path=SCREENSHOTS / f"panel_{theme.lower()}.png")
    page.locator(".jp-RenderedImage img").first.scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / "figure.png")


def _command(page, name, arguments=None):
    """What a JupyterLab command returns; null when it takes longer than ``COMMAND_MS``."""
    script = """([name, given, limit]) => Promise.race([
        window.jupyterapp.commands.execute(name, given),
        new Promise((resolve) => setTimeout(() => resolve(null), limit))])"""
    return page.evaluate(script, [name, arguments or {}, COMMAND_MS])


class _Panel:
    """The panel as a person sees it."""

    def __init__(self, page):
        self.page = page
        page.locator(".wb-map .wb-cell").first.wait_for(timeout=30_000)
        self.scroll_to()
        self.image = page.locator("img.wb-tap-plot")
        self.image.wait_for()

    def scroll_to(self):
        self.page.locator(".wb-map").evaluate("map => map.parentElement.scrollIntoView({block: 'start'})")

    def choose_metric(self, label):
        self.page.locator(".wb-metrics select").select_option(label=label)

    def cell(self, row, column):
        return self.page.locator(f".wb-cell[data-row='{row}'][data-column='{column}']")

    def press(self, *keys):
        self.page.locator(".wb-heat").focus()
        for key in keys:
            self.page.keyboard.press(key)

    def picture(self):
        return self.image.get_attribute("src")

    def wait_for(self, tap):
        self.page.locator(".wb-status", has_text=tap).wait_for(timeout=10_000)

    def wait_for_picture_other_than(self, source):
        self.page.wait_for_function(
            "old => document.querySelector('img.wb-tap-plot')?.src !== old", arg=source, timeout=10_000
        )
        return self.picture()

    def fits(self):
        """Whether nothing of the panel is cut off on the right."""
        return self.page.locator(".wb-map").evaluate("map => map.scrollWidth <= map.clientWidth + 1")
