"""The second notebook in a real JupyterLab, as a person goes through it: look, tune, stop, compare.

Screenshots go to the git-ignored folder ``screenshots/``: look at them when a panel has changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from chromium import NEEDS_CHROMIUM
from lab import SCREENSHOTS, command, notebook_that_ran

NOTEBOOK = "02_tune_smoothquant.ipynb"

# Boxes of widgets with scroll bars: they take width from charts, which then wrap.
SCROLLING_BOXES = """panel => [...panel.querySelectorAll(".widget-box")]
    .filter((box) => box.scrollWidth > box.clientWidth || box.offsetHeight > box.clientHeight + 4 ||
        ["auto", "scroll"].includes(getComputedStyle(box).overflowY) && box.scrollHeight > box.clientHeight)
    .map((box) => box.className)"""
# What JupyterLab leaves a panel in a window of 1400 px with the file browser open, and a little less.
NARROW_PX = 905

pytestmark = NEEDS_CHROMIUM


def test_a_person_looks_tunes_stops_and_compares(notebooks, tmp_path):
    with notebook_that_ran(notebooks, tmp_path / "jupyter", NOTEBOOK) as page:
        person = _Person(page)

        person.clicks_a_hot_cell(layer=11)
        person.moves_alpha_of_down()
        person.tunes_and_stops()
        person.asks_for_too_much()
        person.compares_and_clicks()
        person.looks_in_both_themes()
        person.has_a_narrow_window()
        person.restarts_the_kernel_during_work()
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


class _Person:
    """What a person does, and waits to see."""

    def __init__(self, page):
        self.page = page
        self.ranges, self.alpha = page.locator(".wb-ranges").first, page.locator(".wb-alpha").first
        self.compare = page.locator(".wb-panel.wb-compare").first
        self.alpha.locator(".wb-chart path").first.wait_for(timeout=60_000)

    def clicks_a_hot_cell(self, layer):
        """The close-up and the alpha panel below follow."""
        before = self._pictures(self.ranges)
        self._row(self.ranges, "down input").locator(".wb-cell").nth(layer).click()
        self._wait_until_other(self.ranges, before)
        self._wait_until(
            lambda: f"layers.{layer}.mlp.down.input" in self._chosen(self.ranges), "the menu did not follow"
        )
        # Which group the alpha panel shows stands in the title of its first chart.
        self.alpha.locator(".wb-chart-title", has_text=f"layers.{layer}.down").first.wait_for(timeout=20_000)
        self._look("ranges", self.ranges)

    def moves_alpha_of_down(self):
        """Error, curve and recipe text change."""
        row = self.alpha.locator(".wb-alpha-down")
        self._wait_for_text(row.locator(".wb-value"), "%")
        before = row.inner_text(), self._pictures(self.alpha), self._recipe_text()
        handle = row.locator(".noUi-handle")
        handle.focus()
        for _ in range(5):
            self.page.keyboard.press("ArrowLeft")
        self._wait_until(lambda: self._recipe_text() != before[2], "the recipe's text did not change")
        assert "layers.11.down" in self._recipe_text()
        self._wait_until(lambda: self._pictures(self.alpha) != before[1], "the curve did not change")
        self._wait_until(lambda: row.inner_text() != before[0], "the error did not change")
        self._look("alpha", self.alpha)

    def tunes_and_stops(self):
        """The job shows progress, and ends where it was told to; stop may be pressed twice."""
        groups = self._recipe_text().count("layers.")
        self.alpha.get_by_role("button", name="Tune all groups").click()
        job = self.alpha.locator(".wb-job")
        job.get_by_text("tune all groups").first.wait_for(timeout=10_000)
        self._wait_until(lambda: " of " in job.inner_text(), "no progress was shown")
        stop = job.get_by_role("button", name="Stop")
        stop.dispatch_event("click")
        stop.dispatch_event("click")
        self._wait_until(lambda: "stopped" in job.inner_text(), "the job did not stop")
        self.page.wait_for_timeout(300)
        # Each group stands in the YAML and in the command.
        assert groups <= self._recipe_text().count("layers.") < 2 * 120
        self._look("tuning_stopped", self.alpha)

    def asks_for_too_much(self):
        """A number beyond a limit is put back, and a note beside the field says which limit that is."""
        field = self.compare.get_by_role("spinbutton", name="Windows")
        before = field.input_value()
        for number, shown in (("5000", "64"), (before, before)):
            field.fill(number)
            field.press("Enter")
            self._wait_until(lambda shown=shown: field.input_value() == shown, f"{number} did not become {shown}")
            if number != shown:
                self._wait_for_text(self.compare.locator(".wb-limit"), "64 is the most")
        self.compare.locator(".wb-limit").wait_for(state="detached", timeout=20_000)

    def compares_and_clicks(self):
        """The comparison runs beside the notebook; a click on its map draws another tap."""
        self.compare.get_by_role("button", name="Compare").first.click()
        cells = self.compare.locator(".wb-map .wb-cell")
        cells.first.wait_for(timeout=240_000)
        before = self._pictures(self.compare)
        self._row(self.compare, "mlp.down").locator(".wb-cell").nth(3).click()
        self._wait_for_text(self.compare, "layers.3.mlp.down")
        self._wait_until_other(self.compare, before)
        self.compare.get_by_role("button", name="Worst", exact=True).click()
        worst = self.compare.locator(".wb-tap b").inner_text
        self._wait_until(lambda: worst() != "layers.3.mlp.down", "the worst tap was not shown")
        self._look("layer_diff", self.compare)

    def looks_in_both_themes(self):
        """Screenshots; nothing is cut off on the right."""
        for theme in ("Dark", "Light"):
            command(self.page, "apputils:change-theme", {"theme": f"JupyterLab {theme}"})
            self.page.wait_for_function(f"document.body.dataset.jpThemeName === 'JupyterLab {theme}'")
            self.page.wait_for_timeout(500)  # style sheets of a theme arrive after its name
            for name, panel in (("ranges", self.ranges), ("alpha", self.alpha), ("layer_diff", self.compare)):
                self._look(f"{name}_{theme.lower()}", panel)
        for panel in (self.ranges, self.alpha, self.compare):
            assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth + 1")
            assert panel.evaluate(SCROLLING_BOXES) == []

    def has_a_narrow_window(self):
        """Buttons stay in their rows, and charts beside each other."""
        now = self.page.viewport_size
        room = now["width"] - round(self.alpha.bounding_box()["width"])
        self.page.set_viewport_size({"width": NARROW_PX + room, "height": now["height"]})
        self._wait_until(lambda: self.alpha.bounding_box()["width"] < NARROW_PX + 2, "the panel stayed wide")
        self.page.wait_for_timeout(500)  # charts are drawn anew
        for name in ("qkv", "o", "gate_up", "down"):
            row = self.alpha.locator(f".wb-alpha-{name}")
            middles = [box["y"] + box["height"] / 2 for box in map(_box, row.locator("button, .noUi-base").all())]
            assert max(middles) - min(middles) < 3, f"the row of {name} is broken"
        assert len({round(_box(each)["y"]) for each in self.alpha.locator(".wb-chart").all()}) == 1
        closeups = [_box(self.compare.locator(f".wb-tap-{name}")) for name in ("values", "errors")]
        assert closeups[0]["y"] == closeups[1]["y"]
        assert sum(box["width"] for box in closeups) > 0.95 * NARROW_PX
        tokens, worst = (_box(self.compare.locator(f".wb-token-{name}")) for name in ("errors", "worst"))
        assert abs(tokens["y"] - worst["y"]) < 5
        for name, panel in (("ranges", self.ranges), ("alpha", self.alpha), ("layer_diff", self.compare)):
            self._look(f"{name}_narrow", panel)
            assert panel.evaluate(SCROLLING_BOXES) == []
        self.page.set_viewport_size(now)

    def restarts_the_kernel_during_work(self):
        """Nothing is corrupted: the same notebook runs again from the top, on what was calibrated before."""
        self.alpha.get_by_role("button", name="Tune all groups").click()
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        self.page.wait_for_function(
            "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
        )
        assert command(self.page, "notebook:run-all-cells"), "a cell failed after the restart"
        self._wait_until(lambda: self._pictures(self.alpha) != [], "no picture after the restart")
        self._wait_for_text(self.alpha.locator(".wb-alpha-down .wb-value"), "%")
        self._look("after_restart", self.alpha)

    # ---- what is to be seen

    def _row(self, panel, label):
        """One row of a panel's map."""
        return panel.locator(".wb-row", has=self.page.locator(f".wb-row-label:text-is('{label}')")).first

    def _recipe_text(self):
        return self.alpha.locator(".wb-recipe-text").inner_text()

    def _chosen(self, panel):
        """What the panel's menus stand at."""
        return panel.locator("select").evaluate_all("all => all.map(menu => menu.selectedOptions[0]?.text)")

    def _pictures(self, panel):
        """The shapes of every chart: they change when other numbers are drawn."""
        return panel.locator(".wb-chart svg").evaluate_all("all => all.map(svg => svg.innerHTML)")

    def _wait_until_other(self, panel, before):
        self._wait_until(lambda: self._pictures(panel) != before, "no other picture was drawn")

    def _wait_for_text(self, place, text):
        self._wait_until(lambda: text in place.first.inner_text(), f"{text!r} did not appear")

    def _wait_until(self, condition, complaint, seconds=30):
        for _ in range(seconds * 20):
            if condition():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(complaint)

    def _look(self, name, panel):
        panel.evaluate("panel => panel.scrollIntoView({block: 'start'})")
        self.page.wait_for_timeout(200)
        self.page.screenshot(path=SCREENSHOTS / f"bench_{name}.png")


def _box(part):
    """Where a part of the page stands."""
    return part.bounding_box()
