"""Labels inside a plot: beside what they name, off each other, off lines where there is room."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from figure_texts import faults, texts_in
from matplotlib.figure import Figure

from workbench.evaluation.figure_labels import Label, write_labels


@pytest.fixture
def axes():
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    return axes


def px(axes, x, y):
    return axes.transData.transform((x, y))


def crossed(box, corners):
    """Whether a line through corners in px passes under a box."""
    points = np.concatenate([np.linspace(a, b, 200) for a, b in itertools.pairwise(corners)])
    return bool(((points > box.min) & (points < box.max)).all(axis=1).any())


def test_labels_of_lines_that_stand_close_keep_off_each_other(axes):
    places = {"99 %": 8.6, "99.9 %": 9.3, "99.99 %": 9.35, "largest": 9.5}
    for at in places.values():
        axes.axvline(at)
    write_labels({axes: [Label(text, x=at) for text, at in places.items()]})
    assert faults(axes.get_figure()) == []
    boxes = texts_in(axes)
    for text, at in places.items():
        line = px(axes, at, 0)[0]
        assert min(abs(boxes[text].x0 - line), abs(boxes[text].x1 - line)) < 8  # it ends at its own line
        assert axes.bbox.x0 <= boxes[text].x0 < boxes[text].x1 <= axes.bbox.x1


def test_a_label_stands_on_the_side_where_no_other_line_is(axes):
    for at in (5.0, 5.15):
        axes.axvline(at)
    write_labels({axes: [Label("first", x=5.0), Label("second", x=5.15)]})
    boxes = texts_in(axes)
    assert boxes["first"].x1 < px(axes, 5.0, 0)[0]
    assert boxes["second"].x0 > px(axes, 5.15, 0)[0]


def test_a_horizontal_line_is_named_where_the_curve_is_not(axes):
    x = np.linspace(0, 10, 50)
    y = 2 + 0.2 * (x - 5) ** 2  # crosses the line at 2 and 8; its right end passes where the name would begin
    axes.plot(x, y)
    axes.axhline(3.8)
    write_labels({axes: [Label("not smoothed: 3.15 %", y=3.8)]})
    (box,) = texts_in(axes).values()
    assert not crossed(box, axes.transData.transform(np.column_stack([x, y])))
    assert min(abs(box.y0 - px(axes, 0, 3.8)[1]), abs(box.y1 - px(axes, 0, 3.8)[1])) < 8


@pytest.mark.parametrize("draw", ["steps", "markers", "dots", "bars"])
def test_it_keeps_off_everything_that_is_drawn(axes, draw):
    if draw == "steps":
        axes.plot([0, 5, 10], [9.5, 1, 1], drawstyle="steps-post")
    elif draw == "markers":
        axes.plot([5.8], [9.5], marker="o", markersize=14)
    elif draw == "dots":
        axes.scatter([5.8], [9.5], s=150)
    else:
        axes.bar([5.8], [9.5], width=1.5)
    axes.axvline(5.0)
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    write_labels({axes: [Label("here", x=5.0)]})
    (box,) = texts_in(axes).values()
    if draw == "steps":
        assert box.x0 > px(axes, 5.0, 0)[0]  # the step before the line runs on the left, at the height of the first row
    else:
        assert box.x1 < px(axes, 5.0, 0)[0]


def test_names_of_points_stand_around_them(axes):
    axes.scatter([5, 5, 5.1, 9.9], [5, 5, 5.1, 9.9])
    labels = [Label(f"name {n}", x, y) for n, (x, y) in enumerate([(5, 5), (5, 5), (5.1, 5.1), (9.9, 9.9)])]
    write_labels({axes: labels})
    assert faults(axes.get_figure()) == []
    for box in texts_in(axes).values():
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1


def test_places_hold_at_any_resolution(axes):
    axes.axvline(5.0)
    write_labels({axes: [Label("now", x=5.0, color="#999933"), Label("", x=3.0)]})
    (text,) = axes.texts
    assert text.get_transform() is axes.transAxes
    assert text.get_color() == pytest.approx((0.45, 0.45, 0.15))  # darker than its line


def test_nothing_to_write_draws_nothing(axes, monkeypatch):
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda _: pytest.fail("drawn"))
    write_labels({axes: [Label("", x=1.0)]})
    assert not axes.texts
