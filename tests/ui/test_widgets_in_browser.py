"""The JavaScript of the chart and the heat map, on a bare page in a headless Chromium."""

from __future__ import annotations

import numpy as np
import pytest
from chromium import NEEDS_CHROMIUM
from widget_page import assign, show, trait

from workbench.ui.chart import Axis, Bars, Chart, Line, Points, Rule
from workbench.ui.chart_view import ChartView, chart_spec
from workbench.ui.heat_map import HeatMap

pytestmark = NEEDS_CHROMIUM
# Whether the texts of an SVG overlap, stick out of it, or are too small to read.
UNREADABLE = """() => [...document.querySelectorAll(".wb-chart-plot svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const small = [...svg.querySelectorAll("text")].filter((text) => parseFloat(getComputedStyle(text).fontSize) < 12);
  const out = texts.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 12);
  const pairs = texts.flatMap(([name, a], i) => texts.slice(i + 1).map(([other, b]) => [name, a, other, b]));
  const clash = pairs.filter(([, a, , b]) => a.left < b.right && b.left < a.right && a.top + 3 < b.bottom - 3 &&
    b.top + 3 < a.bottom - 3).map(([name, , other]) => `${name} over ${other}`);
  return [...small.map((text) => text.textContent), ...out.map(([name]) => name), ...clash];
})"""


def curve(**options):
    alphas = np.linspace(0, 1, 21)
    errors = 0.02 + (alphas - 0.7) ** 2
    marks = [
        Line(alphas, errors, "per token", "#0072B2", marker="o"),
        Points([0.5], [0.06], colors="#D55E00", texts=["the habit of the field"], size=8),
        Rule("x", 0.85, "now 0.85"),
        Rule("x", 0.83, "least 0.83"),
    ]
    return Chart("Error by alpha", Axis("alpha", low=0, high=1), Axis("relative L2 error", "log"), marks, **options)


def tick_texts(page):
    return page.locator(".wb-chart-axes text").all_text_contents()


def test_a_chart_has_axes_a_legend_and_a_name(page):
    show(page, ChartView(curve()))
    assert {"0", "0.2", "0.8", "1.0", "0.02", "0.05", "0.1", "0.5"} <= set(tick_texts(page))
    assert page.locator(".wb-chart-legend").inner_text() == "per token"
    assert page.locator(".wb-chart-name").all_text_contents() == ["now 0.85", "least 0.83"]
    name = page.locator(".wb-chart").get_attribute("aria-label")
    assert name == "Error by alpha: relative L2 error by alpha, 22 points"
    assert page.evaluate(UNREADABLE) == []


@pytest.mark.parametrize(
    ("low", "high", "scale", "expected"),
    [
        (1e-7, 1e3, "log", {"10⁻⁶", "10⁻³", "1", "10³"}),
        (0.001, 1000, "log", {"0.01", "1", "100"}),
        (20, 50, "log", {"20", "30", "40", "50"}),
        (0, 29_000, "linear", {"0", "10k", "20k"}),
        (0, 2e-5, "linear", {"0", "1×10⁻⁵", "2×10⁻⁵"}),
        (-1.5, 1.5, "linear", {"−1", "0", "1"}),
    ],
)
def test_ticks_are_round_numbers(page, low, high, scale, expected):
    show(page, ChartView(Chart("t", Axis("x"), Axis("y", scale), [Line([0, 1], [low, high])])))
    assert expected <= set(tick_texts(page))
    assert page.evaluate(UNREADABLE) == []


@pytest.mark.parametrize("values", [[], [5.0], [0.0, 0.0], [np.nan, np.inf], [-1.0, 0.0]])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_nothing_worth_drawing_is_drawn_without_complaint(page, values, scale):
    x = np.arange(len(values))
    marks = [Line(x, values, step=True, fill=True), Points(x, values), Bars(x, values)]
    show(page, ChartView(Chart("t", Axis("x"), Axis("y", scale), marks)))
    assert page.locator(".wb-chart-frame").count() == 1
    assert "NaN" not in page.locator(".wb-chart-plot").inner_html()


def test_a_gap_parts_a_line(page):
    show(page, ChartView(Chart("t", Axis("x"), Axis("y"), [Line(range(5), [1, 2, np.nan, 2, 1])])))
    assert page.locator(".wb-chart-plot g path[fill=none]").count() == 2


def test_an_empty_bin_stands_on_a_logarithmic_axis(page):
    show(page, ChartView(Chart("t", Axis("x"), Axis("y", "log"), [Line([1, 2, 3, 4], [5, 0, 9, 0], step=True)])))
    assert page.locator(".wb-chart-plot g path[fill=none]").count() == 1


def test_thousands_of_points_are_one_path_per_colour(page):
    x = np.random.default_rng(0).standard_normal(4000)
    colors = ["#0072B2" if value > 0 else "#D55E00" for value in x]
    show(page, ChartView(Chart("t", Axis("x"), Axis("y"), [Points(x, x, colors=colors)], diagonal=True)))
    assert page.locator(".wb-chart-plot path[stroke-linecap=round]").count() == 2
    assert page.locator(".wb-chart-diagonal").count() == 1


def test_the_mouse_shows_and_chooses_the_nearest_point(page):
    show(page, ChartView(curve()))
    # Where alpha is 0.5: between the chart's left and right ends of 0 and 1.
    box = page.locator(".wb-chart-frame").bounding_box()
    point = (box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.62)
    page.mouse.move(*point)
    tip = page.locator(".wb-chart-tip")
    assert tip.inner_text() in ("the habit of the field", "per token\nalpha: 0.5\nrelative L2 error: 0.06")
    page.mouse.click(*point)
    assert trait(page, "selected") in ([1, 0], [0, 10])
    assert page.locator("circle.wb-chart-chosen").count() == 2
    page.mouse.move(5, 600)
    assert not tip.is_visible()


def test_a_chart_that_is_not_clickable_chooses_nothing(page):
    show(page, ChartView(curve(), clickable=False))
    page.locator(".wb-chart-plot").click(position={"x": 200, "y": 60})
    assert trait(page, "selected") == [-1, -1]


def test_arrow_keys_walk_along_a_mark_and_to_the_next(page):
    show(page, ChartView(curve()))
    page.locator(".wb-chart").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert trait(page, "selected") == [0, 2]
    assert "alpha: 0.1" in page.locator(".wb-chart-live").inner_text()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert trait(page, "selected") == [0, 20]
    for key in ("ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert trait(page, "selected") == [1, 0]
    page.keyboard.press("Escape")
    assert not page.locator(".wb-chart-tip").is_visible()


def test_another_chart_replaces_the_first(page):
    show(page, ChartView(curve()))
    bars = Bars([0, 1], [3.0, 4.0], "K", ["#0072B2", "#E69F00"])
    assign(page, spec=chart_spec(Chart("Heads", Axis("head"), Axis("largest"), [bars])))
    assert page.locator(".wb-chart-title").inner_text() == "Heads"
    assert page.locator(".wb-chart-name").count() == 0
    assert "0" in tick_texts(page)
    assign(page, spec={})
    assert not page.locator(".wb-chart").is_visible()


def test_a_narrow_place_makes_a_narrow_chart_with_texts_of_full_size(page):
    show(page, ChartView(curve(width=520)))
    page.locator(".wb-chart").evaluate("chart => { chart.parentElement.style.width = '260px'; }")
    page.wait_for_function("document.querySelector('.wb-chart-plot svg').clientWidth === 260")
    assert page.evaluate(UNREADABLE) == []


def test_a_chart_never_sticks_out_of_a_place_of_half_a_px(page):
    show(page, ChartView(curve(width=520)))
    page.locator(".wb-chart").evaluate("chart => { chart.parentElement.style.width = '411.5px'; }")
    page.wait_for_function("document.querySelector('.wb-chart-plot svg').getBoundingClientRect().width === 411")


def test_names_of_rules_do_not_touch(page):
    def with_rule(at):
        marks = [Line([0, 100], [1, 2]), Rule("x", at, "99 %"), Rule("x", 100, "largest")]
        return Chart("t", Axis("x", low=0, high=100), Axis("y"), marks, width=400)

    show(page, ChartView(with_rule(60)))
    gaps = []
    for at in range(60, 90):
        assign(page, spec=chart_spec(with_rule(at)))
        first, second = sorted((each.bounding_box() for each in page.locator(".wb-chart-name").all()), key=_left)
        if abs(first["y"] - second["y"]) < first["height"] - 4:
            gaps.append(second["x"] - first["x"] - first["width"])
    assert gaps
    assert min(gaps) > 3  # their halos included


def _left(box):
    return box["x"]


# How near, in px, a drawn line comes to the box of a name; 0 where it runs through it.
DISTANCE = """() => {
  const box = document.querySelector(".wb-chart-name").getBoundingClientRect();
  const line = document.querySelector(".wb-chart-plot svg path[stroke-width='1.75']");
  const toPage = line.getScreenCTM();
  const places = Array.from({ length: 2001 }, (_, i) => line.getPointAtLength((line.getTotalLength() * i) / 2000));
  return Math.min(...places.map((place) => {
    const { x, y } = place.matrixTransform(toPage);
    return Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
  }));
}"""


@pytest.mark.parametrize("height", [0.28, 0.2, 0.12, 0.05])
def test_the_name_of_a_line_across_keeps_off_the_curve(page, height):
    alphas = np.linspace(0, 1, 21)
    marks = [
        Line(alphas, 0.02 + 0.5 * (alphas - 0.6) ** 2, marker="o"),
        Rule("y", height, "not smoothed: 1.74 %", dash=True),
    ]
    valley = Chart(
        "t", Axis("alpha", low=0, high=1), Axis("error", "log", low=0.02, high=0.4), marks, width=380, height=260
    )
    show(page, ChartView(valley))
    assert page.locator(".wb-chart-name").count() == 1
    assert page.evaluate(DISTANCE) > 1


def test_where_no_place_is_free_the_name_of_a_line_across_is_still_written(page):
    places = np.linspace(0, 1, 41)
    zigzag = Line(places, np.where(np.arange(41) % 2, 0.0, 1.0))
    show(page, ChartView(Chart("t", Axis("x"), Axis("y"), [zigzag, Rule("y", 0.5, "in the middle")], width=300)))
    assert page.locator(".wb-chart-name").all_text_contents() == ["in the middle"]


def heat_map(**traits):
    rows, columns = ["qkv input", "down input"], [str(layer) for layer in range(80)]
    count = len(rows) * len(columns)
    shown = {"colors": ["#440154"] * count, "texts": [f"cell {place}" for place in range(count)], "label": "magnitude"}
    return HeatMap(rows=rows, columns=columns, row_groups=["attention", "MLP"], **(shown | traits))


def test_a_map_of_eighty_layers_is_legible(page):
    show(page, heat_map(marks=["dot", *[""] * 159]))
    assert page.locator(".wb-cell").count() == 160
    assert page.locator(".wb-row-group").all_text_contents() == ["attention", "MLP"]
    labels = [text for text in page.locator(".wb-column-label").all_text_contents() if text]
    assert labels[:3] in (["0", "2", "4"], ["0", "5", "10"])
    assert page.locator(".wb-heat").evaluate("map => map.scrollWidth <= map.clientWidth + 1")
    assert page.locator(".wb-cell[data-mark=dot]").count() == 1
    assert page.locator(".wb-heat").get_attribute("aria-label") == "magnitude: 2 by 80 (site by layer)"


def test_a_cell_is_chosen_by_mouse_and_keyboard(page):
    show(page, heat_map())
    page.locator(".wb-cell[data-row='1'][data-column='7']").click()
    assert trait(page, "selected") == [1, 7]
    page.locator(".wb-heat").focus()
    for key in ("ArrowUp", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert trait(page, "selected") == [0, 8]
    assert page.locator("[aria-selected=true]").get_attribute("aria-label") == "cell 8"


def test_numbers_of_rows_are_named(page):
    show(page, heat_map(axes=("KV head", "layer")))
    assert page.locator(".wb-rows-name").count() == 0
    assign(page, names_rows=True)
    assert page.locator(".wb-rows-name").inner_text() == "KV head"
    name, first = (page.locator(each).first.bounding_box() for each in (".wb-rows-name", ".wb-row-label"))
    assert name["y"] + name["height"] <= first["y"]
    assert name["x"] < first["x"] + first["width"]


def test_other_colours_keep_the_cells(page):
    show(page, heat_map())
    page.locator(".wb-cell").first.evaluate("cell => { cell.dataset.kept = 'yes'; }")
    assign(page, colors=["#fde725"] * 160, texts=["new"] * 160)
    first = page.locator(".wb-cell").first
    assert first.get_attribute("data-kept") == "yes"
    assert first.get_attribute("title") == "new"
    assert first.evaluate("cell => cell.style.backgroundColor") == "rgb(253, 231, 37)"


def test_a_cell_without_a_place_cannot_be_chosen(page):
    show(page, heat_map(texts=["", *["cell"] * 159], colors=["transparent"] * 160))
    page.locator(".wb-cell").first.click()
    assert trait(page, "selected") == [-1, -1]
    assert page.locator(".wb-cell.wb-unknown").count() == 159
