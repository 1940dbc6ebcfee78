"""The texts are the recipe: the YAML reads back, and the command line parses to the same recipe."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.bench.bench import Bench
from workbench.bench.state import BenchState
from workbench.cli.recipe_flags import add_recipe_flags, given_recipe
from workbench.recipe import BuildLimits, Int4WeightOnly, Int8KVCache, Recipe, SmoothQuant
from workbench.ui.recipe_text import RecipeText, command_line

RECIPES = {
    "default": Recipe(),
    "a folder with spaces": Recipe(model="my models/it's one", dtype="bfloat16"),
    "int4": Recipe(weights=Int4WeightOnly(32), keep=(), build=BuildLimits(targets=("sm80", "sm89"))),
    "one alpha per group": Recipe(
        model="m",
        weights=SmoothQuant(alpha_by_group={f"layers.{n}.{g}": 0.55 for n in range(30) for g in ("qkv", "down")}),
        keep=("lm_head", "layers.*.mlp.down"),
        kv_cache=Int8KVCache("per_tensor", 99.9),
    ),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_command_line_means_the_recipe(recipe: Recipe) -> None:
    command = command_line(recipe, "the ranges")
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["workbench", "convert"]
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    parser.add_argument("--output_dir")
    parser.add_argument("--ranges")
    given = parser.parse_args(words[2:])
    assert given_recipe(given).recipe.to_dict() == {**recipe.to_dict(), "model": recipe.model or "MODEL"}
    assert (given.output_dir, given.ranges) == ("CHECKPOINT", "the ranges")


def test_lines_are_short_and_go_on() -> None:
    lines = command_line(RECIPES["one alpha per group"]).split("\n")
    assert max(map(len, lines)) <= 80
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert not lines[-1].endswith("\\")


def test_texts_follow_the_recipe() -> None:
    state = BenchState()
    text = RecipeText(state)
    assert Recipe.from_yaml(text.yaml) == state.recipe
    state.set_alpha(0.5, "layers.1.down")
    text.settle()
    assert "layers.1.down: 0.5" in text.yaml
    assert "--alpha_by_group layers.1.down=0.5" in text.command
    state.undo()
    text.settle()
    assert Recipe.from_yaml(text.yaml) == Recipe()
    assert repr(text) == "RecipeText(workbench convert --model_dir MODEL --output_dir CHECKPOINT)"
    assert text.frame.iloc[0].to_dict() == {"yaml": text.yaml, "command": text.command}


def test_many_changes_end_at_the_last_one() -> None:
    state = BenchState()
    text = RecipeText(state)
    for step in range(100):
        state.set_alpha(step / 100)
    text.settle()
    assert "--alpha 0.99" in text.command


def test_after_close_nothing_follows() -> None:
    state = BenchState()
    text = RecipeText(state)
    text.close()
    before = text.yaml
    state.set_alpha(0.5)
    text.settle()
    assert text.yaml == before


def test_the_calibration_at_hand_is_named_where_the_recipe_needs_one(
    random_model_dir: Callable[..., Path], random_calibration: Path, tmp_path: Path
) -> None:
    bench = Bench(random_model_dir(), cache_dir=tmp_path, device="cpu")
    text = RecipeText(bench)
    assert "--ranges" not in text.command
    bench.use_calibration(random_calibration)
    text.settle()
    assert f"--ranges {random_calibration}" in text.command
    bench.recipe = Recipe(weights=Int4WeightOnly())
    text.settle()
    assert "--ranges" not in text.command
