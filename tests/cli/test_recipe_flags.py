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
from workbench.errors import RecipeError, WorkbenchError
from workbench.recipe import (
    DTYPES,
    INPUT_SCALES,
    INT4_GROUPS,
    KV_SCALES,
    SMOOTHING_GROUPS,
    TARGETS,
    WEIGHT_SCALES,
    BuildLimits,
    Int4WeightOnly,
    Int8KVCache,
    Int8WeightOnly,
    Recipe,
    SmoothQuant,
)

PARTS = {"weights": (Int8WeightOnly, Int4WeightOnly, SmoothQuant), "kv_cache": (Int8KVCache,), "build": (BuildLimits,)}
COMMAND = Command("any", "Any.", "workbench any", add_recipe_flags, lambda _: Outcome())


def parse(*words: str) -> argparse.Namespace:
    return COMMAND.parse(words)


def test_every_recipe_field_is_a_flag() -> None:
    fields = {(item.section, item.name) for item in flagged_fields()}
    expected = {("", item.name) for item in dataclasses.fields(Recipe) if item.name != "build"}
    for section, owners in PARTS.items():
        expected |= {(section, item.name) for owner in owners for item in dataclasses.fields(owner)}
    assert fields == expected


alphas = st.floats(0.0, 1.0)
smoothings = st.lists(st.sampled_from(tuple(SMOOTHING_GROUPS)), min_size=1, unique=True).flatmap(
    lambda groups: st.builds(
        SmoothQuant,
        weight=st.sampled_from(WEIGHT_SCALES),
        activation=st.sampled_from(INPUT_SCALES),
        alpha=alphas,
        groups=st.just(tuple(groups)),
        alpha_by_group=st.dictionaries(
            st.builds("layers.{}.{}".format, st.integers(0, 99), st.sampled_from(groups)), alphas, max_size=3
        ),
    )
)
quantizations = st.one_of(
    st.just(Int8WeightOnly()),
    st.builds(Int4WeightOnly, group_size=st.sampled_from((0, *INT4_GROUPS))),
    smoothings,
    st.builds(SmoothQuant, groups=st.just(())),
)
recipes = st.builds(
    Recipe,
    model=st.text("abc/_-. ", max_size=8).filter(lambda text: not text.startswith("-")),
    dtype=st.sampled_from(DTYPES),
    weights=quantizations,
    kv_cache=st.none()
    | st.builds(Int8KVCache, granularity=st.sampled_from(KV_SCALES), percentile=st.floats(50.0, 100.0)),
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


def test_fields_of_a_kind_are_flags_and_the_flag_wins(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("weights: {kind: smoothquant, alpha: 0.5, groups: [qkv, down]}\nkv_cache: {kind: int8}\n")
    words = ["--weights", "smoothquant", "--alpha", "0.9", "--sq_activation", "per_tensor", "--kv_percentile", "99.9"]
    outcome = given_recipe(parse("--recipe", str(path), *words, "--alpha_by_group", "layers.3.down=0.7"))
    assert outcome.recipe.weights == SmoothQuant(
        activation="per_tensor", alpha=0.9, groups=("qkv", "down"), alpha_by_group={"layers.3.down": 0.7}
    )
    assert outcome.recipe.kv_cache == Int8KVCache(percentile=99.9)
    assert list(map(str, outcome.replacements)) == ["--alpha 0.9 replaces 0.5 of r.yaml"]
    assert {("weights", "alpha"), ("weights", "groups"), ("kv_cache", "percentile")} <= outcome.stated
    assert ("weights", "weight") not in outcome.stated


def test_another_kind_forgets_the_fields_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("weights: {kind: smoothquant, alpha: 0.5}\n")
    outcome = given_recipe(parse("--recipe", str(path), "--weights", "int4", "--group_size", "32"))
    assert outcome.recipe.weights == Int4WeightOnly(32)
    assert list(map(str, outcome.replacements)) == ["--weights int4 replaces smoothquant of r.yaml"]
    assert outcome.stated == {("", "weights"), ("weights", "group_size")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--group_size", "64"], "--group_size belongs to --weights int4, but weights is none; add --weights int4"),
        (["--weights", "int8", "--alpha", "1"], "--alpha belongs to --weights smoothquant, but weights is int8; add"),
        (["--kv_percentile", "99"], "--kv_percentile belongs to --kv_cache int8, but kv_cache is none; add --kv_cache"),
        (["--weights", "smoothquant", "--alpha", "1.5"], r"weights\.alpha is 1\.5; allowed: 0 to 1"),
        (
            ["--weights", "smoothquant", "--alpha_by_group", "layers.3.down"],
            r"'layers\.3\.down'; allowed: NAME=NUMBER",
        ),
        (["--weights", "int4", "--group_size", "48"], r"weights\.group_size is 48; allowed: 128, 64, 32, or 0"),
        (["--kv_cache", "int4"], r"--kv_cache int4; allowed: none, int8; did you mean 'int8'\?"),
        (["--weights", "int9"], r"--weights int9; allowed: none, int8, int4, smoothquant; did you mean 'int8'\?"),
        (["--weights", "fp8"], r"--weights fp8; allowed: none, int8, int4, smoothquant"),
    ],
)
def test_a_field_of_another_kind_or_an_illegal_value_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        given_recipe(parse(*words))


def test_a_combination_that_file_and_flag_make_illegal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("weights: {kind: int8}\nkeep: [layers.0.mlp.down]\n")
    with pytest.raises(RecipeError, match="weights is not quantized, so there is nothing to keep layers out of"):
        given_recipe(parse("--recipe", str(path), "--weights", "none"))


def test_flags_err_like_files() -> None:
    with pytest.raises(RecipeError, match="dtype is 'fp16'; allowed: float32, float16, bfloat16; did you mean 'float"):
        given_recipe(parse("--dtype", "fp16"))
    with pytest.raises(RecipeError, match=r"build\.targets is empty"):
        given_recipe(parse("--targets"))


def test_flag_of_names_the_flag() -> None:
    assert flag_of("", "model") == "--model_dir"
    assert flag_of("build", "max_batch_size") == "--max_batch_size"
