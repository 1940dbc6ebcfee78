from __future__ import annotations

from workbench.ui.text_view import TextView


def test_a_text_has_a_name_and_is_replaced() -> None:
    view = TextView("Recipe", "a: 1\n")
    assert (view.label, view.text) == ("Recipe", "a: 1\n")
    view.text = "a: 2\n"
    assert view.text == "a: 2\n"


def test_the_styles_of_panels_come_with_it() -> None:
    css = str(TextView._css)
    assert ".wb-text-lines" in css
    assert ".wb-error" in css
