"""The first notebook in a real JupyterLab: a click on the map, a line or a token shows another tap or token.

Screenshots go to the git-ignored folder ``screenshots/``: look at them when the panel has changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from chromium import NEEDS_CHROMIUM
from lab import SCREENSHOTS, command, notebook_that_ran

NOTEBOOK = "00_start_here.ipynb"

pytestmark = NEEDS_CHROMIUM


def test_a_click_draws_another_tap(notebooks, tmp_path):
    with notebook_that_ran(notebooks, tmp_path / "jupyter", NOTEBOOK) as page:
        panel = _Panel(page)
        first = panel.points()

        panel.cell(9, 3).click()
        panel.wait_for("layers.3.mlp.gate_up")
        second = panel.wait_for_points_other_than(first)
        assert panel.fits()

        panel.press("ArrowDown", "ArrowRight", "Enter")
        panel.wait_for("layers.4.mlp.act")
        assert panel.wait_for_points_other_than(second) != first

        panel.step_along_depth()
        panel.wait_for("layers.4.mlp.act", there=False)
        panel.token(5).click()
        page.locator(".wb-token-box .wb-line", has_text="token 5 ").wait_for(timeout=10_000)

        panel.choose_metric("signal to noise [dB]")
        page.locator(".wb-heat[aria-label^='signal to noise']").wait_for(timeout=10_000)
        _look(page, panel)


def _look(page, panel):
    """Screenshots in both themes."""
    for theme in ("Light", "Dark"):
        command(page, "apputils:change-theme", {"theme": f"JupyterLab {theme}"})
        page.wait_for_function(f"document.body.dataset.jpThemeName === 'JupyterLab {theme}'")
        panel.scroll_to()
        page.wait_for_timeout(500)  # style sheets of a theme arrive after its name
        page.screenshot(path=SCREENSHOTS / f"panel_{theme.lower()}.png")
    page.locator(".jp-RenderedImage img").first.scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / "figure.png")


class _Panel:
    """The panel as a person sees it."""

    def __init__(self, page):
        self.page = page
        page.locator(".wb-map .wb-cell").first.wait_for(timeout=30_000)
        self.scroll_to()
        self.values = page.locator(".wb-tap-values svg path")
        self.values.first.wait_for()

    def scroll_to(self):
        self.page.locator(".wb-layer-diff").evaluate("panel => panel.scrollIntoView({block: 'start'})")

    def choose_metric(self, label):
        self.page.locator(".wb-metrics select").select_option(label=label)

    def cell(self, row, column):
        return self.page.locator(f".wb-map .wb-cell[data-row='{row}'][data-column='{column}']")

    def token(self, index):
        return self.page.locator(f".wb-token-box .wb-token[data-index='{index}']")

    def press(self, *keys):
        self.page.locator(".wb-map .wb-heat").focus()
        for key in keys:
            self.page.keyboard.press(key)

    def step_along_depth(self):
        """Choose the next point of a line with the keyboard."""
        self.page.locator(".wb-depth .wb-chart").focus()
        for key in ("ArrowRight", "ArrowRight", "Enter"):
            self.page.keyboard.press(key)

    def points(self):
        """The paths of the scatter, as drawn."""
        return self.values.evaluate_all("paths => paths.map((path) => path.getAttribute('d')).join()")

    def wait_for(self, tap, *, there=True):
        state = "visible" if there else "detached"
        self.page.locator(".wb-tap .wb-line", has_text=tap).wait_for(timeout=10_000, state=state)

    def wait_for_points_other_than(self, points):
        self.page.wait_for_function(
            """old => [...document.querySelectorAll('.wb-tap-values svg path')]
                .map((path) => path.getAttribute('d')).join() !== old""",
            arg=points,
            timeout=10_000,
        )
        return self.points()

    def fits(self):
        """Whether nothing of the panel is cut off on the right."""
        return self.page.locator(".wb-layer-diff").evaluate("panel => panel.scrollWidth <= panel.clientWidth + 1")
