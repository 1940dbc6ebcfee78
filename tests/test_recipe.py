"""The recipe: what can be written reads back the same, what is illegal is refused in words that help."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import RecipeError
from workbench.recipe import (
    DTYPES,
    INPUT_SCALES,
    INT4_GROUPS,
    KV_SCALES,
    SITES,
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

_names = st.one_of(
    st.just("lm_head"),
    st.builds("layers.{}.{}".format, st.one_of(st.just("*"), st.integers(0, 99)), st.sampled_from(["*", *SITES])),
)
_build = st.builds(
    BuildLimits,
    max_batch_size=st.integers(1, 512),
    max_input_len=st.integers(1, 1 << 20),
    max_output_len=st.integers(1, 1 << 20),
    targets=st.lists(st.sampled_from(TARGETS), min_size=1, unique=True).map(tuple),
)
_quantized = st.builds(
    Recipe,
    model=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20),
    dtype=st.sampled_from(DTYPES),
    weights=st.one_of(
        st.just(Int8WeightOnly()),
        st.builds(Int4WeightOnly, group_size=st.sampled_from((0, *INT4_GROUPS))),
        st.builds(
            SmoothQuant,
            weight=st.sampled_from(WEIGHT_SCALES),
            activation=st.sampled_from(INPUT_SCALES),
            alpha=st.floats(0.0, 1.0),
            groups=st.just(tuple(SMOOTHING_GROUPS)),
            alpha_by_group=st.dictionaries(st.just("layers.3.down"), st.floats(0.0, 1.0)),
        ),
    ),
    kv_cache=st.none()
    | st.builds(Int8KVCache, granularity=st.sampled_from(KV_SCALES), percentile=st.floats(50.0, 100.0)),
    keep=st.lists(_names, max_size=4, unique=True).map(tuple),
    build=_build,
)
recipes = st.one_of(
    _quantized,
    _quantized.map(
        lambda recipe: dataclasses.replace(
            recipe, weights=None, keep=tuple(name for name in recipe.keep if name == "lm_head")
        )
    ),
)


@given(recipes)
def test_a_recipe_reads_back_from_its_dictionary_and_its_yaml(recipe: Recipe) -> None:
    import yaml

    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


def test_a_recipe_reads_back_from_its_file(tmp_path: Path) -> None:
    recipe = Recipe(model="模型/internlm", dtype="bfloat16", weights=Int8WeightOnly(), keep=("layers.*.mlp.down",))
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_a_recipe_reads_back_from_its_text() -> None:
    recipe = Recipe(weights=SmoothQuant(alpha_by_group={"layers.1.down": 0.7}), kv_cache=Int8KVCache())
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_yaml("") == Recipe()
    assert Recipe.from_yaml("dtype: bfloat16") == Recipe(dtype="bfloat16")


def test_a_text_that_is_not_yaml_says_where() -> None:
    with pytest.raises(RecipeError, match=r"the text is not YAML \(.*line 1.*\); mend the line"):
        Recipe.from_yaml("dtype: [float16")


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("# nothing chosen yet\n")
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe()


def test_a_recipe_says_only_what_differs_on_the_command_line() -> None:
    assert Recipe().to_cli() == []
    recipe = Recipe(model="m", weights=Int8WeightOnly(), build=BuildLimits(max_batch_size=2, targets=("sm89",)))
    assert recipe.to_cli() == ["--model_dir", "m", "--weights", "int8", "--max_batch_size", "2", "--targets", "sm89"]


def test_the_fields_of_a_kind_follow_it_on_the_command_line() -> None:
    smooth = SmoothQuant(alpha=0.5, groups=("qkv", "down"), alpha_by_group={"layers.3.down": 0.7})
    assert " ".join(Recipe(weights=smooth, kv_cache=Int8KVCache("per_tensor")).to_cli()) == (
        "--weights smoothquant --kv_cache int8 --alpha 0.5 --groups qkv down --alpha_by_group layers.3.down=0.7 "
        "--kv_granularity per_tensor"
    )


def test_an_alpha_of_its_own_wins_where_its_group_is_smoothed() -> None:
    smooth = SmoothQuant(alpha=0.5, groups=("qkv", "down"), alpha_by_group={"layers.3.down": 0.7})
    assert [smooth.alpha_of(layer, "down") for layer in (2, 3)] == [0.5, 0.7]
    assert smooth.alpha_of(3, "o") is None


@pytest.mark.parametrize(
    ("keep", "linear", "quantized"),
    [
        (("lm_head",), "lm_head", False),
        (("lm_head",), "layers.3.mlp.down", True),
        (("layers.*.mlp.down",), "layers.3.mlp.down", False),
        (("layers.*.mlp.down",), "layers.3.mlp.gate_up", True),
        (("layers.3.*",), "layers.3.attention.o", False),
        (("layers.3.*",), "layers.33.attention.o", True),
        ((), "lm_head", True),
    ],
)
def test_keep_leaves_linears_in_dtype(keep: tuple[str, ...], linear: str, quantized: bool) -> None:
    recipe = Recipe(weights=Int8WeightOnly(), keep=keep)
    assert (recipe.weights_of(linear) is not None) == quantized


def test_an_unquantized_recipe_quantizes_nothing() -> None:
    assert Recipe().weights_of("layers.0.mlp.down") is None


def test_sequence_length_is_prompt_and_output() -> None:
    assert BuildLimits(max_input_len=30, max_output_len=12).max_seq_len == 42


MESSAGES: list[tuple[Any, str]] = [
    ({"dtpye": "float16"}, "the recipe has the unknown key 'dtpye'; allowed: model, dtype, weights, keep, kv_cache, "
                           "max_positions, build; did you mean 'dtype'?"),
    ({"build": {"max_batchsize": 2}}, "build has the unknown key 'max_batchsize'; allowed: max_batch_size, "
                                      "max_input_len, max_output_len, targets; did you mean 'max_batch_size'?"),
    ({"weights": {"kind": "int8", "group": 64}}, "weights of kind int8 has the unknown key 'group'"),
    ({"max_positions": -1}, "max_positions is -1; allowed: whole numbers from 0"),
    ({"weights": {"kind": "int9"}}, "weights.kind is 'int9'; allowed: int8, int4, smoothquant; did you mean"),
    ({"weights": {"kind": "int4", "group_size": 16}}, "weights.group_size is 16; allowed: 128, 64, 32, or 0 for one"),
    ({"weights": {"kind": "int4", "group_size": 32.0}}, "weights.group_size is 32.0; allowed: a whole number"),
    ({"weights": {"kind": "smoothquant", "alpha": 1.5}}, "weights.alpha is 1.5; allowed: 0 to 1"),
    ({"weights": {"kind": "smoothquant", "alpha": float("nan")}}, "weights.alpha is nan; allowed: 0 to 1"),
    ({"weights": {"kind": "smoothquant", "alpha": "half"}}, "weights.alpha is 'half'; allowed: a number"),
    ({"weights": {"kind": "smoothquant", "weight": "per_row"}}, "weights.weight is 'per_row'; allowed: per_channel, "),
    ({"weights": {"kind": "smoothquant", "activation": "per_tokn"}}, "weights.activation is 'per_tokn'; allowed: "
                                                                     "per_token, per_tensor; did you mean"),
    ({"weights": {"kind": "smoothquant", "groups": ["gate"]}}, "weights.groups is 'gate'; allowed: qkv, o, gate_up, "
                                                               "down; did you mean 'gate_up'?"),
    ({"weights": {"kind": "smoothquant", "alpha_by_group": {"layers.*.down": 1}}},
     "weights.alpha_by_group names 'layers.*.down'; allowed: layers.N.GROUP, GROUP one of qkv, o, gate_up, down"),
    ({"weights": {"kind": "smoothquant", "groups": ["o"], "alpha_by_group": {"layers.0.down": 1}}},
     "weights.alpha_by_group names 'layers.0.down', but down is not among weights.groups; add down to groups"),
    ({"weights": {"kind": "smoothquant", "alpha_by_group": {"layers.0.down": 2}}},
     "weights.alpha_by_group['layers.0.down'] is 2.0; allowed: 0 to 1"),
    ({"weights": {"kind": "smoothquant", "alpha_by_group": [1]}}, "weights.alpha_by_group is [1]; allowed: a mapping"),
    ({"kv_cache": {"kind": "int4"}}, "kv_cache.kind is 'int4'; allowed: int8"),
    ({"kv_cache": {"kind": "int8", "granularity": "per_token"}}, "kv_cache.granularity is 'per_token'; allowed: "
                                                                 "per_head, per_tensor"),
    ({"kv_cache": {"kind": "int8", "percentile": 10}}, "kv_cache.percentile is 10.0; allowed: 50 to 100"),
    ({"weights": "int8"}, "weights is 'int8'; allowed: null or a mapping with 'kind'; write weights: {kind: int8}"),
    ({"weights": {"bits": 8}}, "weights is {'bits': 8}; allowed: null or a mapping with 'kind'"),
    ({"dtype": "bfloat"}, "dtype is 'bfloat'; allowed: float32, float16, bfloat16; did you mean 'bfloat16'?"),
    ({"dtype": 16}, "dtype is 16; allowed: a text"),
    ({"keep": "lm_head"}, "keep is 'lm_head'; allowed: a list of names"),
    ({"keep": [1]}, "keep is [1]; allowed: a list of names"),
    ({"keep": ["layers.0.mlp.gate"]}, "keep names 'layers.0.mlp.gate', which is no linear layer; allowed: lm_head, "
                                      "layers.N.SITE or layers.*.SITE"),
    ({"keep": ["layers.0.mlp.down"]}, "keep is ['layers.0.mlp.down'] but weights is not quantized, so there is "
                                      "nothing to keep layers out of; set weights.kind, or remove keep"),
    ({"build": {"max_input_len": 0}}, "build.max_input_len is 0; allowed: whole numbers from 1; raise it"),
    ({"build": {"max_output_len": "many"}}, "build.max_output_len is 'many'; allowed: a whole number"),
    ({"build": {"max_batch_size": True}}, "build.max_batch_size is True; allowed: a whole number"),
    ({"build": {"targets": []}}, "build.targets is empty; allowed: sm80, sm86"),
    ({"build": {"targets": ["sm98"]}}, "build.targets is 'sm98'; allowed: sm80, sm86, sm89, sm120, sm121; "
                                       "did you mean"),
    ({"build": [1]}, "build is list, not a mapping; write 'key: value' lines"),
    ("float16", "the recipe is str, not a mapping; write 'key: value' lines"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), MESSAGES)
def test_what_is_illegal_is_refused_in_words(content: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(content)
    assert message in str(caught.value)


def test_the_nearest_linear_is_suggested() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'layers\.\*\.mlp\.down'\?"):
        Recipe(weights=Int8WeightOnly(), keep=("layers.*.mlp.dwon",))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe .*none\.yaml is not a file; give the path of a YAML file"):
        Recipe.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("content", [b"dtype: [float16", b"\xff\xfe\x00broken"])
def test_a_file_that_is_not_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"recipe .*recipe\.yaml is not YAML \(.*\); mend the file"):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("content", "key", "line"),
    [
        ("dtype: float16\nkeep: []\ndtype: float32\n", "dtype", 3),
        ("weights:\n  kind: int4\n  group_size: 64\n  group_size: 32\n", "group_size", 4),
        ("weights: {kind: smoothquant, alpha_by_group: {layers.0.o: 0, layers.0.o: 1}}\n", "layers.0.o", 1),
    ],
)
def test_a_key_that_is_there_twice_is_named(tmp_path: Path, content: str, key: str, line: int) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(
        RecipeError, match=rf"recipe\.yaml is not YAML \('{key}' twice .*line {line}, .*; mend the file"
    ):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_command_line_survives_a_shell() -> None:
    words = Recipe(model="my models/7b").to_cli()
    assert shlex.split(shlex.join(words)) == words == ["--model_dir", "my models/7b"]


def test_reading_a_dictionary_leaves_it_as_it_was() -> None:
    content = {"keep": ["lm_head"], "build": {"targets": ["sm80"]}}
    Recipe.from_dict(content)
    assert content == {"keep": ["lm_head"], "build": {"targets": ["sm80"]}}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"weights": {"kind": "int8"}},
            r"weights is \{'kind': 'int8'\}; allowed: Int8WeightOnly, .*; Recipe.from_dict",
        ),
        ({"kv_cache": "int8"}, r"kv_cache is 'int8'; allowed: Int8KVCache, None"),
        ({"build": {}}, r"build is \{\}; allowed: BuildLimits"),
        ({"keep": "lm_head"}, r"keep is 'lm_head'; allowed: tuple"),
    ],
)
def test_parts_of_another_type_are_refused(choices, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**choices)
