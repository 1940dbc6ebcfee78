from __future__ import annotations

import pytest
import torch

from workbench.evaluation.side_by_side import Answer, Conversation, Reading, Spoken
from workbench.ui.playground_marks import answer_column, partings_table, reading_column, reading_table, summary

TEXTS = {10: " a", 11: " <b>", 12: " c\n", 13: " d"}


def _text_of(token):
    return TEXTS[token]


def _spoken(token, p, others, *, ends=False):
    return Spoken(token, p, ((token, p), (13, 0.1)), others, ends)


@pytest.fixture
def talk():
    """Both say " a"; then the first says " <b>" and the second " c"; then both end, having read different texts."""
    first = [
        _spoken(10, 0.9, (0.9, 0.8)),
        _spoken(11, 0.4, (0.4, 0.3)),
        _spoken(12, 0.7, (0.7, None)),
        _spoken(13, 0.7, (0.7, None), ends=True),
    ]
    second = [_spoken(10, 0.8, (0.9, 0.8)), _spoken(12, 0.5, (0.35, 0.5)), _spoken(13, 0.6, (None, 0.6), ends=True)]
    return Conversation(["HF", "INT8"], [1], [Answer(first, 0.1, 0.5), Answer(second, 0.1, 0.2)])


def test_marks_of_an_answer(talk):
    assert answer_column(talk, 0, _text_of).marks == ["", "first", "differs", "special"]
    second = answer_column(talk, 1, _text_of)
    assert second.marks == ["", "first", "differs"]
    assert second.texts == [" a", " c↵\n", " d"]


def test_the_tooltip_has_every_probability_that_is_known(talk):
    tip = answer_column(talk, 1, _text_of).tips[1]
    assert "HF: “␣<b>” 40.0 %, “␣c↵” 35.0 %" in tip
    assert "INT8: “␣c↵” 50.0 %, “␣<b>” 30.0 %" in tip
    later = answer_column(talk, 1, _text_of).tips[2]
    assert "HF: “␣c↵” 70.0 %\n" in later
    assert "They had read different texts by then." in later
    assert answer_column(talk, 0, _text_of).tips[0] == "token 0: “␣a” 90.0 %\nthen “␣d” 10.0 %"


def test_the_table_of_partings(talk):
    table = partings_table(talk, _text_of)
    assert "token 1, where the answers part" in table
    assert "“␣&lt;b&gt;”" in table
    assert "<b>40.0 %</b>" in table
    assert "35.0 %" in table
    same = Conversation(["HF", "INT8"], [1], [talk.answers[0], talk.answers[0]])
    assert partings_table(same, _text_of) == ""


def test_a_column_in_one_line(talk):
    assert summary(talk, 0) == "4 tokens, ended by itself; 6.0 tokens/s"
    assert summary(talk, 1) == "3 tokens, ended by itself; 10.0 tokens/s; parts from the first at token 1"
    same = Conversation(["HF", "INT8"], [1], [talk.answers[0], talk.answers[0]])
    assert summary(same, 1).endswith("says what the first says")


@pytest.fixture
def reading():
    choices = torch.tensor([[10, 11], [10, 12]])
    asked = torch.tensor([[[0.9, 0.4], [0.9, 0.0002]], [[0.8, 0.3], [0.8, 0.5]]])
    return Reading(["HF", "INT8"], [10, 11], torch.tensor([[0.9, 0.4], [0.8, 0.3]]), choices, asked)


def test_the_first_answer_as_another_reads_it(reading):
    assert reading_column(reading, 0, _text_of).texts == [" a", " <b>"]
    column = reading_column(reading, 1, _text_of)
    assert column.texts == [" a", " <b>", "[␣c↵]"]
    assert column.marks == ["", "differs", "instead"]
    assert column.tips[0] == "token 0: “␣a”\nHF: 90.0 %\nINT8: 80.0 %"
    assert "its own first choice “␣c↵”\nHF: 2.0e-02 %\nINT8: 50.0 %" in column.tips[1]


def test_the_table_of_other_choices(reading):
    table = reading_table(reading, _text_of)
    assert "<td>30.0 %, 50.0 %</td><td>40.0 %, 2.0e-02 %</td>" in table
    assert "“␣&lt;b&gt;”" in table
    agreed = Reading(["HF"], [10], torch.ones(1, 1), torch.tensor([[10]]), torch.ones(1, 1, 1))
    assert "Every model would have written the first answer" in reading_table(agreed, _text_of)


def test_a_long_table_says_how_much_is_missing(reading):
    long = Reading(
        reading.names,
        [10] * 20,
        torch.full((2, 20), 0.5),
        torch.stack([torch.full((20,), 10), torch.full((20,), 11)]),
        torch.full((2, 2, 20), 0.5),
    )
    table = reading_table(long, _text_of)
    assert table.count("<tr>") == 13
    assert "and 8 more" in table
