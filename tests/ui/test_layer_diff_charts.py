from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from figure_texts import faults

from workbench.errors import WorkbenchError
from workbench.evaluation.palette import PRECISION, SITE
from workbench.evaluation.tap_error import DIVERGENCE
from workbench.ui.chart import Line, Rule, draw
from workbench.ui.layer_diff_charts import (
    depth_chart,
    error_chart,
    place_in_depth,
    tap_in_depth,
    token_chart,
    value_chart,
)

TAP = "layers.1.mlp.down"


def test_a_line_per_site_and_the_limit(make_diff):
    diff = make_diff(layers=3, spoil={TAP: 0.5})
    chart = depth_chart(diff)
    lines = [mark for mark in chart.marks if isinstance(mark, Line)]
    assert [line.label for line in lines] == list(SITE)
    assert list(lines[0].x) == [0, 1, 2]
    error = diff.frame.set_index("tap").loc[TAP, "relative_l2"]
    down = next(line for line in lines if line.label == "mlp.down")
    assert down.y[1] == error
    assert down.texts[1] == f"{TAP}\nrelative L2 error {error:.3g}"
    limit, first = (mark for mark in chart.marks if isinstance(mark, Rule))
    assert (limit.axis, limit.at, limit.dash) == ("y", DIVERGENCE["float16"], True)
    assert (first.axis, first.at) == ("x", 1)


def test_a_point_of_the_chart_is_a_tap(make_diff):
    diff = make_diff()
    place = place_in_depth(diff, TAP)
    assert tap_in_depth(diff, place) == TAP
    assert place_in_depth(diff, "logits") == [-1, -1]
    assert place_in_depth(diff, "layers.1.mlp.act") == [-1, -1]
    assert tap_in_depth(diff, [-1, -1]) is None


def test_sites_that_are_left_out_have_no_line(make_diff):
    diff = make_diff()
    rest = replace(diff, frame=diff.frame[diff.frame["site"] != "attention.qkv"])
    labels = [mark.label for mark in depth_chart(rest).marks if isinstance(mark, Line)]
    assert labels == [site for site in SITE if site != "attention.qkv"]
    assert tap_in_depth(rest, place_in_depth(rest, TAP)) == TAP


def test_values_and_errors(make_diff):
    diff = make_diff()
    values, errors = value_chart(diff, TAP), error_chart(diff, TAP)
    reference, candidate = diff.samples(TAP)
    assert values.diagonal
    assert torch.equal(torch.as_tensor(values.marks[0].x), reference)
    assert torch.equal(torch.as_tensor(values.marks[0].y), candidate)
    assert values.marks[0].colors == PRECISION["float16"]
    assert values.x.label == "Hugging Face"
    assert np.sum(errors.marks[0].y) == len(reference)
    assert errors.y.scale == "log"


def test_what_is_not_finite_is_counted(make_diff):
    diff = make_diff()
    lost = torch.tensor([1.0, torch.nan])
    broken = replace(diff, _samples={TAP: (torch.ones(2), lost), "logits": (torch.ones(1), lost[1:])})
    assert value_chart(broken, TAP).title.endswith("2 of its values, 1 not finite")
    nothing = error_chart(broken, "logits")
    assert (nothing.title, list(nothing.marks)) == ("No error is finite", [])


def test_an_error_per_token(make_diff):
    diff = make_diff()
    chart = token_chart(diff, TAP, 1)
    assert np.array_equal(chart.marks[0].y, diff.per_token.of(TAP)[1].numpy())
    assert chart.marks[0].texts[4].startswith("token 4: j\nrelative L2 error")
    assert "window 1" in chart.title


def test_every_chart_is_a_picture_too(make_diff):
    diff = make_diff(spoil={TAP: 0.5})
    charts = [depth_chart(diff), value_chart(diff, TAP), error_chart(diff, TAP), token_chart(diff, TAP, 0)]
    figure = draw(charts, "ours against theirs")
    assert figure.axes
    assert faults(figure) == []


def test_an_unknown_tap(make_diff):
    for chart in (value_chart, error_chart, lambda diff, tap: token_chart(diff, tap, 0)):
        with pytest.raises(WorkbenchError, match=r"tap 'layers\.9\.mlp\.down'"):
            chart(make_diff(), "layers.9.mlp.down")
