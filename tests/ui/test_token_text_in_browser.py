"""The JavaScript of the text of tokens, on a bare page in a headless Chromium."""

from __future__ import annotations

from chromium import NEEDS_CHROMIUM
from widget_page import assign, show, trait

from workbench.ui.token_text import TokenText

pytestmark = NEEDS_CHROMIUM


def text(**traits):
    widget = TokenText("answer of a model")
    widget.show(["The", " <b>", " sky", " is", " blue"], **traits)
    return widget


TIPS = [f"tip {number}" for number in range(5)]


def test_markup_stays_text_and_marks_keep_to_the_word(page):
    show(page, text(marks=["", "first", "", "differs", "special"], tips=TIPS))
    assert page.locator(".wb-tokens-body").inner_text() == "The <b> sky is blue"
    assert page.locator(".wb-tokens-body b").count() == 0
    assert page.locator(".wb-token-first .wb-token-ink").inner_text() == "<b>"
    assert page.locator(".wb-tokens").get_attribute("aria-label") == "answer of a model, 5 tokens"


def test_the_mouse_shows_a_tip_and_a_click_chooses(page):
    show(page, text(tips=TIPS))
    page.locator(".wb-token").nth(2).hover()
    assert page.locator(".wb-tokens-tip").inner_text() == "tip 2"
    page.locator(".wb-token").nth(2).click()
    assert trait(page, "selected") == 2
    assert "wb-token-chosen" in page.locator(".wb-token").nth(2).get_attribute("class")


def test_the_keyboard_goes_from_token_to_token_and_from_mark_to_mark(page):
    show(page, text(marks=["", "first", "", "differs", ""], tips=TIPS))
    page.locator(".wb-tokens").focus()
    for key, place in (("ArrowRight", 0), ("ArrowDown", 1), ("ArrowDown", 3), ("ArrowDown", 3), ("ArrowUp", 1)):
        page.keyboard.press(key)
        assert page.locator(".wb-tokens-live").text_content() == f"tip {place}"
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert trait(page, "selected") == 4
    page.keyboard.press("Escape")
    assert not page.locator(".wb-tokens-tip").is_visible()


def test_a_text_that_grows_is_told_apart_from_one_that_has_ended(page):
    show(page, text(busy=True))
    assert page.locator(".wb-tokens").get_attribute("aria-busy") == "true"
    first = page.locator(".wb-token").first.evaluate_handle("token => token")
    assign(page, texts=["The", " <b>", " sky", " is", " blue", "."], marks=[""] * 5 + ["special"], busy=False)
    page.locator(".wb-token-special").wait_for(timeout=5_000)
    assert page.locator(".wb-token").first.evaluate("(token, old) => token === old", first)
    assert page.locator(".wb-tokens").get_attribute("aria-busy") == "false"
    assign(page, texts=["A"], marks=[])
    page.wait_for_function("() => document.querySelectorAll('.wb-token').length === 1")


def test_bars_take_the_colours_that_are_given(page):
    show(page, text(bars=["#440154", "", "#fde725", "", ""]))
    color = "token => getComputedStyle(token).borderBottomColor"
    assert page.locator(".wb-token").nth(2).evaluate(color) == "rgb(253, 231, 37)"
    assert page.locator(".wb-token").nth(1).evaluate(color) == "rgba(0, 0, 0, 0)"


def test_a_tip_is_placed_where_it_can_be_seen(page):
    widget = text(tips=["a line\n" * 6] * 5)
    show(page, widget)
    page.evaluate("() => { document.getElementById('row').style.cssText = 'overflow: hidden; padding-top: 200px'; }")
    page.locator(".wb-token").nth(3).hover()
    tip, token = (page.locator(name).bounding_box() for name in (".wb-tokens-tip", ".wb-token >> nth=3"))
    assert tip["y"] + tip["height"] <= token["y"]
