"""A number's field that says what it did."""

from __future__ import annotations

from workbench.ui.limited_number import LimitedFloat, LimitedInt


def test_what_is_within_is_taken_without_a_word():
    field = LimitedInt(5, 2, 64)
    for value in (2, 64, 30):
        field.value = value
        assert (field.value, field.note.value) == (value, "")


def test_what_lies_beyond_becomes_the_limit_and_the_note_says_so():
    field = LimitedInt(5, 2, 4096, "the model's positions", description="Tokens")
    field.value = 5000
    assert field.value == 4096
    assert ">4,096 is the most: the model's positions</span>" in field.note.value
    assert 'role="status"' in field.note.value
    field.value = -3
    assert field.value == 2
    assert ">2 is the least</span>" in field.note.value
    field.value = 7
    assert field.note.value == ""


def test_the_same_limit_again_is_told_again():
    field = LimitedInt(64, 2, 64)
    field.value = 65
    assert field.value == 64
    assert ">64 is the most</span>" in field.note.value


def test_a_panel_that_shows_the_limit_takes_no_word_back():
    field = LimitedInt(64, 2, 64)
    field.observe(lambda change: setattr(field, "value", change["new"]), "value")
    field.set_state({"value": 65})
    field.value = 64
    assert (field.value, field.note.value != "") == (64, True)
    field.set_state({"value": 63})
    assert (field.value, field.note.value) == (63, "")


def test_other_numbers():
    field = LimitedFloat(99.5, 50.0, 100.0)
    field.value = 100.001
    assert (field.value, field.note.value) == (
        100.0,
        '<span class="wb-about wb-limit" role="status">100 is the most</span>',
    )
    field.value = 99.999
    assert (field.value, field.note.value) == (99.999, "")


def test_a_browser_is_told_what_its_number_became():
    field, sent = LimitedInt(5, 2, 64), []
    field.send_state = lambda key=None: sent.append((key, field.value))
    field.set_state({"value": 1000})
    assert field.value == 64
    assert any("value" in (key if isinstance(key, (set, list, tuple)) else [key]) and now == 64 for key, now in sent)


def test_the_tooltip_names_the_limits():
    assert LimitedInt(5, 2, 4096, "the model's positions").tooltip == "2 to 4,096 (the model's positions)"
    assert LimitedInt(5, 2, 64, tooltip="windows of text").tooltip == "windows of text, 2 to 64"


def test_the_note_stands_beside_the_field():
    field = LimitedInt(5, 2, 64)
    assert field.row.children == (field, field.note)
