from __future__ import annotations

from workbench.ui.token_marks import flowing, visible


def test_what_shows_nothing_becomes_a_sign():
    assert visible(" a\n\tb\u200b\x00") == "␣a↵⇥b<U+200B><U+0000>"


def test_running_text_keeps_its_spaces_and_lines():
    assert flowing(" a\nb\tc\u202e") == " a↵\nb⇥\tc<U+202E>"


def test_markup_is_left_to_whoever_shows_it():
    assert flowing("<b>&") == visible("<b>&") == "<b>&"
