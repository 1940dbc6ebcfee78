"""The recipe panel through its widgets' traits, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.bench.bench import Bench
from workbench.bench.state import BenchState
from workbench.recipe import BuildLimits, Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant
from workbench.ui.notebook import NotebookBench
from workbench.ui.recipe_panel import RecipePanel


@pytest.fixture
def panel() -> RecipePanel:
    return RecipePanel(BenchState(Recipe(weights=SmoothQuant())))


def control(panel: RecipePanel, name: str) -> Any:
    """The widget of ``weights.alpha``, ``dtype``, ``build.max_batch_size`` ..."""
    part, _, field = name.rpartition(".")
    box: Any = {"": panel._plain, "build": panel._build}.get(part)
    if box is None:
        kinds = panel._weights if part == "weights" else panel._kv_cache
        box = kinds.boxes[kinds.kind.value]
    return box.fields[field].controls[0]


def test_it_shows_the_recipe_and_follows_it(panel: RecipePanel) -> None:
    assert repr(panel) == "RecipePanel(float16, weights smoothquant, KV cache float16)"
    assert control(panel, "weights.alpha").value == 0.85
    panel.state.recipe = Recipe(
        dtype="bfloat16",
        weights=Int4WeightOnly(32),
        keep=("lm_head", "layers.*.mlp.down"),
        kv_cache=Int8KVCache("per_tensor", 99.0),
        build=BuildLimits(max_batch_size=3, targets=("sm80",)),
    )
    values = {
        name: control(panel, name).value
        for name in ("dtype", "keep", "weights.group_size", "kv_cache.granularity", "kv_cache.percentile")
    }
    assert values == {
        "dtype": "bfloat16",
        "keep": "lm_head layers.*.mlp.down",
        "weights.group_size": 32,
        "kv_cache.granularity": "per_tensor",
        "kv_cache.percentile": 99.0,
    }
    assert control(panel, "build.max_batch_size").value == 3
    assert panel._build.fields["targets"].value == ("sm80",)
    assert repr(panel) == "RecipePanel(bfloat16, weights int4, KV cache int8)"


def test_showing_is_not_choosing(panel: RecipePanel) -> None:
    panel.state.recipe = Recipe(weights=Int4WeightOnly(32), kv_cache=Int8KVCache())
    assert panel.state.undo_steps == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dtype", "bfloat16", {"dtype": "bfloat16"}),
        ("keep", "", {"keep": ()}),
        ("weights.alpha", 0.5, {"weights": SmoothQuant(alpha=0.5)}),
        ("weights.activation", "per_tensor", {"weights": SmoothQuant(activation="per_tensor")}),
        ("build.max_batch_size", 2, {"build": BuildLimits(max_batch_size=2)}),
    ],
)
def test_what_is_chosen_becomes_the_recipe(panel: RecipePanel, name: str, value: Any, expected: dict[str, Any]) -> None:
    before = panel.recipe
    control(panel, name).value = value
    assert panel.recipe == replace(before, **expected)
    panel.text.settle()
    assert Recipe.from_yaml(panel.text.yaml) == panel.recipe
    panel.state.undo()
    assert panel.recipe == before


def test_kinds_are_chosen_and_remembered(panel: RecipePanel) -> None:
    panel.state.set_alpha(0.5, "layers.1.down")
    tuned = panel.recipe.weights
    panel._weights.kind.value = "int8"
    assert panel.recipe.weights == Int8WeightOnly()
    panel._weights.kind.value = "none"
    assert panel.recipe.weights is None
    panel._weights.kind.value = "smoothquant"
    assert panel.recipe.weights == tuned
    panel._kv_cache.kind.value = "int8"
    assert panel.recipe.kv_cache == Int8KVCache()
    control(panel, "kv_cache.percentile").value = 99.5
    panel._kv_cache.kind.value = "none"
    panel._kv_cache.kind.value = "int8"
    assert panel.recipe.kv_cache == Int8KVCache(percentile=99.5)


def test_groups_with_an_alpha_of_their_own_are_counted(panel: RecipePanel) -> None:
    assert panel._own_alphas.value == ""
    panel.state.set_alpha(0.5, "layers.1.down")
    assert "1 smoothing group has an alpha of its own" in panel._own_alphas.value
    panel.state.set_alpha(0.5, "layers.0.down")
    assert "2 smoothing groups have an alpha of their own" in panel._own_alphas.value
    panel.state.recipe = Recipe()
    assert panel._own_alphas.value == ""


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights.alpha", 1.5, "weights.alpha is 1.5; allowed: 0 to 1"),
        ("keep", "lm_heed", "keep names &#x27;lm_heed&#x27;, which is no linear layer"),
        ("build.max_input_len", 0, "build.max_input_len is 0; allowed: whole numbers from 1"),
    ],
)
def test_what_is_illegal_is_explained_and_not_taken(panel: RecipePanel, name: str, value: Any, message: str) -> None:
    before, shown = panel.recipe, control(panel, name).value
    control(panel, name).value = value
    assert f"not taken: {message}" in panel.status
    assert panel.recipe is before
    assert control(panel, name).value == shown
    control(panel, "dtype").value = "bfloat16"
    assert panel.status == ""


def test_a_combination_that_is_illegal_leaves_the_menu_where_it_was(panel: RecipePanel) -> None:
    control(panel, "keep").value = "lm_head layers.0.mlp.down"
    panel._weights.kind.value = "none"
    assert "there is nothing to keep layers out of; set weights.kind, or remove keep" in panel.status
    assert panel._weights.kind.value == "smoothquant"
    control(panel, "weights.alpha").value = 0.5
    panel.state.set_alpha(0.4, "layers.0.o")
    panel._weights.boxes["smoothquant"].fields["groups"].controls[1].value = False
    assert "o is not among weights.groups" in panel.status
    assert panel._weights.boxes["smoothquant"].fields["groups"].value == ("qkv", "o", "gate_up", "down")


def test_the_yaml_is_edited_and_applied(panel: RecipePanel) -> None:
    assert panel._editor.layout.display == "none"
    panel.edit_button.click()
    assert panel._editor.layout.display == ""
    assert Recipe.from_yaml(panel.draft.value) == panel.recipe
    panel.draft.value = "dtype: bfloat16\nweights: {kind: int4, group_size: 64}"
    panel.apply_button.click()
    assert panel.recipe == Recipe(dtype="bfloat16", weights=Int4WeightOnly(64))
    assert panel._editor.layout.display == "none"
    assert "applied" in panel.status
    panel.state.undo()
    assert panel.recipe == Recipe(weights=SmoothQuant())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dtype: [", "the text is not YAML"),
        ("dtyp: float16", "did you mean &#x27;dtype&#x27;?"),
        ("weights: {kind: int4, group_size: 48}", "weights.group_size is 48; allowed: 128, 64, 32"),
    ],
)
def test_yaml_that_is_no_recipe_stays_in_the_editor(panel: RecipePanel, text: str, message: str) -> None:
    before = panel.recipe
    panel.edit_button.click()
    panel.draft.value = text
    panel.apply_button.click()
    assert message in panel.status
    assert (panel.recipe, panel.draft.value, panel._editor.layout.display) == (before, text, "")
    panel.cancel_button.click()
    assert (panel._editor.layout.display, panel.status) == ("none", "")


def test_edited_yaml_does_not_change_the_model() -> None:
    panel = RecipePanel(BenchState(Recipe(model="mine")))
    panel.edit_button.click()
    panel.draft.value = "model: another\ndtype: bfloat16"
    panel.apply_button.click()
    assert panel.recipe == Recipe(model="mine", dtype="bfloat16")
    assert "applied; the model stays mine" in panel.status


def test_a_recipe_is_saved_and_loaded(panel: RecipePanel, tmp_path: Path) -> None:
    panel.path.value = str(tmp_path / "recipe.yaml")
    panel.state.set_alpha(0.3)
    panel.save_button.click()
    assert f"saved to {tmp_path}" in panel.status
    saved = panel.recipe
    panel.state.set_alpha(0.4)
    panel.save_button.click()
    panel.state.recipe = saved
    panel.load_button.click()
    assert panel.recipe.weights == SmoothQuant(alpha=0.4)
    assert "loaded from" in panel.status
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_recipe_is_saved_whole_or_not_at_all(
    panel: RecipePanel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, held, write = tmp_path / "recipe.yaml", Recipe().to_yaml(), Path.write_text
    path.write_text(held)

    def half(path: Path, text: str, **options: str) -> int:
        write(path, text[:5], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    panel.path.value = str(path)
    panel.save_button.click()
    assert "cannot be written (No space left on device)" in panel.status
    assert path.read_text() == held
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_loaded_recipe_does_not_change_the_model(tmp_path: Path) -> None:
    panel = RecipePanel(BenchState(Recipe(model="mine")))
    Recipe(model="another", dtype="bfloat16").save(tmp_path / "r.yaml")
    panel.path.value = str(tmp_path / "r.yaml")
    panel.load_button.click()
    assert panel.recipe == Recipe(model="mine", dtype="bfloat16")


def test_a_file_that_is_no_recipe_is_not_written_over(panel: RecipePanel, tmp_path: Path) -> None:
    path = tmp_path / "notes.yaml"
    path.write_text("my notes")
    panel.path.value = str(path)
    panel.save_button.click()
    assert "is there and is no recipe; give another path, or remove it" in panel.status
    assert path.read_text() == "my notes"
    panel.path.value = str(tmp_path / "missing" / "recipe.yaml")
    panel.save_button.click()
    assert "cannot be written (No such file or directory); give another path" in panel.status
    panel.load_button.click()
    assert "is not a file; give the path of a YAML file" in panel.status
    panel.path.value = " "
    panel.save_button.click()
    assert "no file is named; write a path, such as recipe.yaml" in panel.status


def test_two_panels_on_one_state_show_the_same() -> None:
    state = BenchState()
    one, other = RecipePanel(state), RecipePanel(state)
    control(one, "dtype").value = "bfloat16"
    assert control(other, "dtype").value == "bfloat16"
    one.close()
    control(other, "dtype").value = "float32"
    assert (state.recipe.dtype, state.undo_steps) == ("float32", 2)
    assert control(one, "dtype").value == "bfloat16"


def test_the_frame_has_a_row_per_choice(panel: RecipePanel) -> None:
    panel.state.set_alpha(0.5, "layers.1.down")
    rows = dict(zip(panel.frame["choice"], panel.frame["value"], strict=True))
    assert rows["dtype"] == "float16"
    assert rows["weights.kind"] == "smoothquant"
    assert rows["weights.alpha_by_group.layers.1.down"] == 0.5
    assert rows["kv_cache"] is None
    assert rows["build.max_batch_size"] == 8


def test_it_stands_alone() -> None:
    panel = RecipePanel()
    control(panel, "dtype").value = "bfloat16"
    assert panel.recipe == Recipe(dtype="bfloat16")
    assert panel._facts.value == ""


@pytest.fixture
def bench(random_model_dir: Callable[..., Path], tmp_path: Path) -> NotebookBench:
    return NotebookBench(random_model_dir(kv_heads=2), cache_dir=tmp_path, device="cpu")


def test_a_bench_tells_its_models_facts(bench: NotebookBench) -> None:
    panel = RecipePanel(bench)
    assert "2 layers, hidden 64, MLP 160, 4 heads of 16 sharing 2 KV heads, vocabulary 97; on cpu" in panel._facts.value
    assert "Nothing is calibrated yet: bench.ranges() does it" in panel._facts.value


def test_the_calibrations_at_hand_are_named(
    random_model_dir: Callable[..., Path], random_calibration: Path, tmp_path: Path
) -> None:
    bench = Bench(random_model_dir(), cache_dir=tmp_path, device="cpu")
    panel = RecipePanel(bench)
    bench.use_calibration(random_calibration)
    assert "Calibrated with random, 4 x 12 tokens" in panel._facts.value


def test_a_bench_in_a_cell_shows_its_recipe(bench: NotebookBench) -> None:
    bundle = bench._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == bench.choices().model_id
    assert data["text/plain"] == repr(bench)
    assert bench.choices() is bench.choices()


def test_a_closed_panel_is_made_anew(bench: NotebookBench) -> None:
    panel = bench.choices()
    panel.close()
    assert bench.choices() is not panel
    assert bench.choices().comm is not None
