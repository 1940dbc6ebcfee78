"""The alpha panel through its widgets' traits, without a browser."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.alphas_of_groups import own_alphas
from tests.ui.alpha_panel_steps import finish, row
from workbench.bench.state import BenchState
from workbench.errors import RecipeError
from workbench.quantization.alpha_search import AlphaSearch
from workbench.recipe import Int8WeightOnly, Recipe, SmoothQuant
from workbench.ui.alpha_charts import CURVE_MARK
from workbench.ui.alpha_panel import AlphaPanel


@pytest.fixture
def state(random_search: AlphaSearch) -> BenchState:
    return BenchState(Recipe(weights=SmoothQuant()), search=random_search)


@pytest.fixture
def panel(state: BenchState) -> AlphaPanel:
    panel = AlphaPanel(state=state)
    panel.settle()
    return panel


# ---- one group


def test_it_begins_with_the_first_group(panel: AlphaPanel, random_search: AlphaSearch) -> None:
    assert panel.group == "layers.0.qkv"
    assert panel.error is not None
    assert panel.error.error == random_search.error(0, "qkv", SmoothQuant()).error
    assert panel.curve == random_search.curve(0, "qkv", SmoothQuant())
    assert [view.chart.title.split()[0] for view in panel.view.charts if view.chart] == [
        "Output",
        "Activations",
        "Weights",
    ]
    assert repr(panel).startswith("AlphaPanel(layers.0.qkv: alpha 0.85, output error ")
    assert "256 held-out rows" in panel.view.error_note.value
    assert panel.state.selected == ""
    assert panel.state.undo_steps == 0


@pytest.mark.parametrize(
    ("given", "group"),
    [("layers.1", "layers.1.qkv"), ("layers.1.mlp", "layers.1.gate_up"), ("layers.1.mlp.down", "layers.1.down")],
)
def test_it_begins_where_it_is_asked_to(state: BenchState, given: str, group: str) -> None:
    panel = AlphaPanel(state=state, group=given)
    assert panel.group == group
    assert panel.view.layer.value == 1
    assert state.selected.startswith("layers.1.")


def test_a_group_that_is_not_there_is_refused(state: BenchState, panel: AlphaPanel) -> None:
    with pytest.raises(RecipeError, match=r"no smoothing group is called 'layers\.7'"):
        AlphaPanel(state=state, group="layers.7")
    with pytest.raises(RecipeError, match=r"there is no group 'layers\.7\.o'; allowed: layers 0 to 1"):
        panel.group = "layers.7.o"
    with pytest.raises(RecipeError, match=r"no group 'layers\.0\.o'; allowed: none before a model is known"):
        AlphaPanel(state=BenchState()).group = "layers.0.o"
    assert panel.group == "layers.0.qkv"


def test_a_slider_changes_recipe_error_and_text(panel: AlphaPanel, random_search: AlphaSearch) -> None:
    row(panel, "down").slider.value = 0.3
    panel.settle()
    panel.text.settle()
    how = SmoothQuant(alpha_by_group={"layers.0.down": 0.3})
    assert panel.state.smoothing == how
    assert panel.group == "layers.0.down"
    assert panel.error is not None
    assert (panel.error.alpha, panel.error.error) == (0.3, random_search.error(0, "down", how).error)
    assert "now: alpha 0.30" in str(panel.view.charts[0].chart)
    assert "layers.0.down: 0.3" in panel.text.yaml
    assert "its own" in row(panel, "down").note.value
    assert panel.state.selected == "layers.0.mlp.down"


def test_a_slider_on_its_way_ends_at_the_newest_value(panel: AlphaPanel) -> None:
    for step in range(40):
        row(panel, "o").slider.value = step / 100
    panel.settle()
    assert panel.error is not None
    assert panel.error.alpha == 0.39
    assert panel.state.undo_steps == 1


def test_an_alpha_assigned_elsewhere_moves_the_slider(panel: AlphaPanel) -> None:
    panel.state.set_alpha(0.25, "layers.0.qkv")
    panel.settle()
    assert row(panel, "qkv").slider.value == 0.25
    assert panel.error is not None
    assert panel.error.alpha == 0.25
    assert panel.state.undo_steps == 1


def test_the_alpha_of_one_group_changes_the_curve_of_the_one_that_it_reads(panel: AlphaPanel) -> None:
    before = panel.curve
    row(panel, "o").slider.value = 0.1
    panel.group = "layers.0.qkv"
    panel.settle()
    assert panel.curve is not None
    assert before is not None
    assert panel.curve.errors != before.errors


def test_a_click_on_the_curve_takes_that_alpha(panel: AlphaPanel) -> None:
    panel.view.charts[0].selected = [CURVE_MARK, 4]
    panel.settle()
    assert own_alphas(panel.state) == {"layers.0.qkv": 0.2}
    panel.view.charts[0].selected = [CURVE_MARK + 1, 0]
    assert own_alphas(panel.state) == {"layers.0.qkv": 0.2}


def test_every_row_of_the_layer_has_its_error(panel: AlphaPanel, random_search: AlphaSearch) -> None:
    for group in ("qkv", "o", "gate_up", "down"):
        error = random_search.error(0, group, SmoothQuant()).error
        assert f"{100 * error:.3g} %" in row(panel, group).error.value


def test_a_group_that_is_not_smoothed_says_so(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=SmoothQuant(groups=("down",))), search=random_search)
    panel = AlphaPanel(state=state)
    panel.settle()
    assert "not smoothed" in row(panel, "qkv").note.value
    assert "not smoothed" in repr(panel)
    row(panel, "qkv").slider.value = 0.5
    panel.settle()
    assert state.smoothing == SmoothQuant(groups=("qkv", "down"), alpha_by_group={"layers.0.qkv": 0.5})


def test_a_recipe_of_another_kind_becomes_smoothquant(random_search: AlphaSearch) -> None:
    state = BenchState(Recipe(weights=Int8WeightOnly()), search=random_search)
    panel = AlphaPanel(state=state)
    panel.settle()
    assert "The recipe quantizes weights as int8: nothing is smoothed yet" in panel.view.recipe_note.value
    assert panel.error is not None
    assert state.recipe.weights == Int8WeightOnly()
    panel.view.all_groups.value = 0.5
    assert state.recipe.weights == SmoothQuant(alpha=0.5)
    assert panel.view.recipe_note.value == ""


# ---- which group


def test_rows_layers_and_cells_choose_a_group(panel: AlphaPanel) -> None:
    row(panel, "gate_up").name.click()
    assert (panel.group, panel.state.selected) == ("layers.0.gate_up", "layers.0.mlp.gate_up")
    panel.view.layer.value = 1
    assert (panel.group, panel.state.selected) == ("layers.1.gate_up", "layers.1.mlp.gate_up")
    panel.view.map.cells.selected = [1, 0]
    assert (panel.group, panel.view.layer.value) == ("layers.0.o", 0)
    assert panel.state.selected == "layers.0.attention.o"
    panel.settle()
    assert panel.error is not None
    assert (panel.error.layer, panel.error.group) == (0, "o")
    assert panel.state.undo_steps == 0


@pytest.mark.parametrize(
    ("selected", "group"),
    [
        ("layers.1.mlp.down", "layers.1.down"),
        ("layers.1.mlp.act", "layers.1.down"),  # what down reads
        ("layers.1.attention.qkv", "layers.1.qkv"),
        ("lm_head", "layers.0.qkv"),
        ("embedding", "layers.0.qkv"),
        ("", "layers.0.qkv"),
    ],
)
def test_what_is_selected_elsewhere_is_shown_here(panel: AlphaPanel, selected: str, group: str) -> None:
    panel.state.selected = selected
    panel.settle()
    assert panel.group == group
    assert panel.state.selected == selected
    assert panel.view.map.cells.selected[1] == panel.view.layer.value


def test_two_panels_on_one_state_move_together(panel: AlphaPanel) -> None:
    other = AlphaPanel(state=panel.state, group="layers.1.down")
    assert panel.group == "layers.1.down"
    row(other, "down").slider.value = 0.2
    panel.settle()
    other.settle()
    assert row(panel, "down").slider.value == 0.2
    assert panel.error is not None
    assert other.error is not None
    assert panel.error.error == other.error.error
    other.close()
    panel.group = "layers.0.o"
    assert other.group == "layers.1.down"


# ---- locks, resets, history


def test_a_locked_group_stays_where_it_is(panel: AlphaPanel) -> None:
    row(panel, "o").slider.value = 0.3
    row(panel, "o").lock.value = True
    assert panel.state.locked == {"layers.0.o"}
    assert row(panel, "o").slider.disabled
    assert row(panel, "o").reset.disabled
    panel.view.reset_all.click()
    assert own_alphas(panel.state) == {"layers.0.o": 0.3}
    panel.settle()
    assert panel.view.map.cells.marks[2] == "corner"
    row(panel, "o").lock.value = False
    row(panel, "o").reset.click()
    assert own_alphas(panel.state) == {}
    panel.settle()
    assert set(panel.view.map.cells.marks) == {""}


def test_a_lock_set_elsewhere_shows_here(panel: AlphaPanel) -> None:
    panel.state.lock("layers.0.down")
    assert row(panel, "down").lock.value
    assert panel.state.locked == {"layers.0.down"}


def test_all_groups_move_and_reset(panel: AlphaPanel) -> None:
    panel.view.all_groups.value = 0.4
    row(panel, "o").slider.value = 0.3
    assert panel.state.smoothing == SmoothQuant(alpha=0.4, alpha_by_group={"layers.0.o": 0.3})
    assert row(panel, "down").slider.value == 0.4
    panel.view.reset_all.click()
    assert panel.state.smoothing == SmoothQuant(alpha=0.4)
    panel.state.undo()
    assert row(panel, "o").slider.value == 0.3


# ---- the table of all groups


def test_the_frame_and_the_map_know_every_group(panel: AlphaPanel) -> None:
    frame = panel.frame.set_index("group")
    assert len(frame) == 8
    assert (frame["alpha"] == 0.85).all()
    assert frame["error"].notna().sum() == 4  # those of the shown layer
    assert frame.loc["layers.0.qkv", "best_tried_error"] == panel.curve.best[1]  # type: ignore[union-attr]
    assert panel.view.map.cells.texts[1] == "layers.1.qkv: alpha 0.85"


def test_missing_errors_are_measured_on_demand(panel: AlphaPanel) -> None:
    panel.view.map.shows.value = "error"
    panel.settle()
    assert panel.view.map.cells.texts[1] == "layers.1.qkv: not measured"
    assert panel.view.map.measure_button.layout.display == ""
    panel.view.map.measure_button.click()
    finish(panel)
    assert panel.frame["error"].notna().all()
    assert "output error" in panel.view.map.cells.texts[1]
    assert panel.view.map.measure_button.layout.display == "none"
    panel.state.set_alpha(0.5)
    panel.settle()
    assert panel.view.map.measure_button.layout.display == ""


def test_a_click_on_the_curve_leaves_a_locked_group_alone(panel: AlphaPanel) -> None:
    panel.state.lock(panel.group)
    panel.settle()
    before = panel.state.recipe
    panel.view.charts[0].selected = [CURVE_MARK, 0]
    assert panel.state.recipe == before
    assert "layers.0.qkv is locked; unlock it first" in panel.status


def test_a_slider_of_a_locked_group_goes_back(panel: AlphaPanel) -> None:
    panel.state.lock("layers.0.qkv")
    row(panel, "qkv").slider.value = 0.1
    assert "is locked" in panel.status
    assert row(panel, "qkv").slider.value == 0.85


def test_a_group_that_the_recipe_keeps_has_no_charts(panel: AlphaPanel) -> None:
    panel.group = "layers.0.down"
    panel.settle()
    panel.state.change(lambda recipe: replace(recipe, keep=("lm_head", "layers.*.mlp.down")))
    panel.settle()
    assert (panel.error, panel.curve, panel.figure) == (None, None, None)
    assert [view.chart for view in panel.view.charts] == [None] * 3
    assert "layers.0.down is kept in float16 by the recipe: no integers" in panel.status
    assert repr(panel).startswith("AlphaPanel(layers.0.down is kept in float16")
    assert "0 %: no integers" in row(panel, "down").error.value
    frame = panel.frame.set_index("group")
    assert frame.loc["layers.0.down", "error"] == 0
    panel.state.undo()
    panel.settle()
    assert panel.error is not None
    assert panel.status == ""


def test_a_layers_groups_say_where_not_smoothing_is_better(panel: AlphaPanel) -> None:
    frame = panel.frame.set_index("group").loc["layers.0.qkv":"layers.0.down"]  # type: ignore[misc]  # a slice of labels
    assert frame["plain_error"].notna().all()
    for name, (best, plain) in frame[["best_tried_error", "plain_error"]].iterrows():
        said = "not smoothing is better" in row(panel, str(name).split(".")[2]).error.value
        assert said == (plain < best)


def test_what_another_recipe_asked_for_is_not_shown(panel: AlphaPanel) -> None:
    old = panel._now
    picture = panel._picture
    assert old is not None
    assert picture is not None
    panel.state.set_alpha(0.3)
    panel.settle()
    now = panel._picture
    panel._show_picture(picture, old)
    panel._show_rest(picture, old)
    assert panel._picture is now
