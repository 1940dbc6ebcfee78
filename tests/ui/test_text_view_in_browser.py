"""The JavaScript of the text box, on a bare page in a headless Chromium."""

from __future__ import annotations

import pytest
from chromium import NEEDS_CHROMIUM
from widget_page import assign, show, widget_page

from workbench.ui.text_view import TextView

pytestmark = NEEDS_CHROMIUM
LINES = [f"line {number}: <b>" for number in range(60)]


@pytest.fixture(scope="module")
def page():
    with widget_page() as page:
        show(page, TextView("Recipe (YAML)", "\n".join(LINES) + "\n"))
        yield page


@pytest.fixture
def box(page):
    assign(page, text="\n".join(LINES) + "\n")
    return page.locator(".wb-text-lines")


def marked(page):
    return [text.rstrip("\n") for text in page.locator(".wb-text-changed").all_text_contents()]


def test_the_text_is_shown_as_it_is(page, box):
    assert box.text_content().rstrip("\n").splitlines() == LINES
    assert page.locator(".wb-text-head b").inner_text() == "Recipe (YAML)"
    assert box.get_attribute("aria-label") == "Recipe (YAML)"
    assert box.evaluate("box => getComputedStyle(box).fontSize") == "12px"


def test_what_changed_is_marked_and_scrolled_to(page, box):
    box.evaluate("box => { box.scrollTop = 0; }")
    changed = [*LINES[:50], "line 50: another", *LINES[51:]]
    assign(page, text="\n".join(changed))
    assert marked(page) == ["line 50: another"]
    inside = "(line) => { const [a, b] = [line, line.parentElement].map((e) => e.getBoundingClientRect()); "
    inside += "return a.top >= b.top && a.bottom <= b.bottom; }"
    assert page.locator(".wb-text-changed").evaluate(inside)
    assert page.evaluate("() => window.scrollY") == 0


def test_lines_that_moved_are_not_marked(page, box):
    assert box.count() == 1
    assign(page, text="\n".join(["a new line", *LINES]))
    assert marked(page) == ["a new line"]
    assign(page, text="\n".join(LINES))
    assert marked(page) == []
    assign(page, text="\n".join([*LINES, LINES[0]]))  # a line that stands there twice now
    assert marked(page) == [LINES[0]]


def test_the_button_copies_even_where_the_clipboard_is_closed(page, box):
    """A bare page is not secure, so the browser gives no clipboard: the text is selected and copied by command."""
    page.get_by_role("button", name="copy: Recipe (YAML)").click()
    page.locator(".wb-text-told", has_text="copied").wait_for(timeout=5000)
    assert page.evaluate("() => window.getSelection().toString()").rstrip("\n").splitlines() == LINES
    assert box.count() == 1


def test_everything_is_reached_by_keyboard(page, box):
    page.evaluate("() => document.activeElement.blur()")
    page.locator(".wb-text-copy").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "wb-text-lines"
    assert box.count() == 1


def test_the_sliders_and_groups_of_its_panel_are_named(page):
    page.evaluate("""() => {
      const panel = document.getElementById("row");
      panel.classList.add("wb-panel");
      const control = (kind, inner) => `<div class="${kind}"><label class="widget-label">Alpha</label>${inner}</div>`;
      window.late = control("widget-slider late", '<div role="slider" tabindex="0"></div>');
      panel.insertAdjacentHTML("beforeend", control("widget-toggle-buttons", "<button>INT8</button>"));
      panel.insertAdjacentHTML("beforeend", control("widget-slider", '<div role="slider" tabindex="0"></div>'));
    }""")
    show(page, TextView("Recipe (YAML)", "one"))
    page.get_by_role("group", name="Alpha").wait_for(timeout=5000)
    slider = page.get_by_role("slider", name="Alpha")
    before = slider.count()
    page.evaluate("() => document.getElementById('row').insertAdjacentHTML('beforeend', window.late)")
    page.locator(".late [aria-label=Alpha]").wait_for(state="attached", timeout=5000)
    assert slider.count() == before + 1
