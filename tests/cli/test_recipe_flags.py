"""Every recipe field is a flag; flags win over the file and say so."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.cli.command import Command, Outcome
from workbench.cli.recipe_flags import add_recipe_flags, flag_of, flagged_fields, given_recipe
from workbench.errors import RecipeError
from workbench.recipe import DTYPES, TARGETS, BuildLimits, Int8WeightOnly, Recipe

COMMAND = Command("any", "Any.", "workbench any", add_recipe_flags, lambda _: Outcome())


def parse(*words: str) -> argparse.Namespace:
    return COMMAND.parse(words)


def test_every_recipe_field_is_a_flag() -> None:
    fields = {(item.section, item.name) for item in flagged_fields()}
    expected = {("", item.name) for item in dataclasses.fields(Recipe) if item.name != "build"}
    assert fields == expected | {("build", item.name) for item in dataclasses.fields(BuildLimits)}


recipes = st.builds(
    Recipe,
    model=st.text("abc/_-. ", max_size=8).filter(lambda text: not text.startswith("-")),
    dtype=st.sampled_from(DTYPES),
    weights=st.just(Int8WeightOnly()),
    keep=st.sampled_from([(), ("lm_head",), ("layers.*.mlp.down", "layers.3.attention.o")]),
    build=st.builds(
        BuildLimits,
        max_batch_size=st.integers(1, 99),
        max_input_len=st.integers(1, 9999),
        max_output_len=st.integers(1, 9999),
        targets=st.lists(st.sampled_from(TARGETS), min_size=1, unique=True).map(tuple),
    ),
)


@given(recipes)
@settings(deadline=None)
def test_an_exported_command_line_reads_back_as_the_recipe(recipe: Recipe) -> None:
    assert given_recipe(parse(*recipe.to_cli())).recipe == recipe


def test_nothing_given_is_the_default_recipe() -> None:
    outcome = given_recipe(parse())
    assert outcome.recipe == Recipe()
    assert outcome.stated == frozenset()
    assert outcome.replacements == ()


def test_the_flag_wins_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("dtype: float16\nweights: {kind: int8}\nkeep: [layers.*.mlp.down]\nbuild: {max_batch_size: 4}\n")
    words = ["--dtype", "bfloat16", "--keep", "lm_head", "--max-batch-size", "2", "--max_input_len", "64"]
    outcome = given_recipe(parse("--recipe", str(path), *words))
    assert outcome.recipe == Recipe(
        dtype="bfloat16", weights=Int8WeightOnly(), build=BuildLimits(max_batch_size=2, max_input_len=64)
    )
    assert list(map(str, outcome.replacements)) == [
        "--dtype bfloat16 replaces float16 of r.yaml",
        "--keep lm_head replaces layers.*.mlp.down of r.yaml",
        "--max_batch_size 2 replaces 4 of r.yaml",
    ]
    assert ("build", "max_input_len") in outcome.stated
    assert ("build", "max_output_len") not in outcome.stated


def test_a_flag_that_repeats_the_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("weights: {kind: int8}\nbuild: {targets: [sm80]}\n")
    words = ["--weights", "int8", "--targets", "sm80"]
    assert given_recipe(parse("--recipe", str(path), *words)).replacements == ()


def test_weights_none_replaces_a_quantization(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("weights: {kind: int8}\n")
    outcome = given_recipe(parse("--recipe", str(path), "--weights", "none"))
    assert outcome.recipe.weights is None
    assert list(map(str, outcome.replacements)) == ["--weights none replaces int8 of r.yaml"]


def test_file_and_flags_are_laid_over_a_base(tmp_path: Path) -> None:
    base = Recipe(dtype="bfloat16", build=BuildLimits(max_batch_size=3, max_input_len=100))
    path = tmp_path / "r.yaml"
    path.write_text("build: {max_input_len: 50}\n")
    outcome = given_recipe(parse("--recipe", str(path), "--max_output_len", "9"), base)
    assert outcome.recipe == Recipe(
        dtype="bfloat16", build=BuildLimits(max_batch_size=3, max_input_len=50, max_output_len=9)
    )


def test_a_combination_that_file_and_flag_make_illegal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("weights: {kind: int8}\nkeep: [layers.0.mlp.down]\n")
    with pytest.raises(RecipeError, match="weights is not quantized, so there is nothing to keep layers out of"):
        given_recipe(parse("--recipe", str(path), "--weights", "none"))


def test_flags_err_like_files() -> None:
    with pytest.raises(RecipeError, match="dtype is 'fp16'; allowed: float32, float16, bfloat16; did you mean 'float"):
        given_recipe(parse("--dtype", "fp16"))
    with pytest.raises(RecipeError, match=r"weights\.kind is 'int9'; allowed: int8"):
        given_recipe(parse("--weights", "int9"))
    with pytest.raises(RecipeError, match=r"build\.targets is empty"):
        given_recipe(parse("--targets"))


def test_flag_of_names_the_flag() -> None:
    assert flag_of("", "model") == "--model_dir"
    assert flag_of("build", "max_batch_size") == "--max_batch_size"
