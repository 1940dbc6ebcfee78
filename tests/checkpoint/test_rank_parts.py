"""The sizes that a plan counts with are those of the tensors that are written."""

from __future__ import annotations

import pytest

from workbench.checkpoint.rank_parts import every_rank, rank_parts, total_bytes
from workbench.checkpoint.unified_layout import checkpoint_tensors
from workbench.errors import WorkbenchError
from workbench.model.presets import PRESETS, Sizes, resized
from workbench.parallel.mapping import Mapping
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

CONFIG = resized(
    PRESETS["internlm-7b"], Sizes(n_layer=5, n_embd=128, n_head=4, n_kv_head=2, inter_size=512, vocab_size=512)
)
RECIPES = [
    Recipe(dtype="float32"),
    Recipe(weights=Int8WeightOnly(), keep=("layers.3.mlp.down",)),
    Recipe(weights=Int4WeightOnly(group_size=64)),
    Recipe(weights=SmoothQuant()),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_rank_holds_what_a_checkpoint_holds(recipe: Recipe) -> None:
    tensors = checkpoint_tensors(CONFIG, recipe)
    assert total_bytes(rank_parts(CONFIG, recipe)) == sum(spec.bytes for spec in tensors.values())


def test_scales_of_a_cache_are_too_small_to_count() -> None:
    recipe = Recipe(kv_cache=Int8KVCache())
    counted = total_bytes(rank_parts(CONFIG, recipe))
    stored = sum(spec.bytes for spec in checkpoint_tensors(CONFIG, recipe).values())
    assert 0 < stored - counted < 200


@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (1, 2), (2, 2), (1, 5)])
def test_ranks_share_the_matrices_and_the_layers(tp_size: int, pp_size: int) -> None:
    recipe = Recipe(weights=Int8WeightOnly())
    whole = {part.name: part for part in rank_parts(CONFIG, recipe)}
    ranks = [rank_parts(CONFIG, recipe, mapping) for mapping in every_rank(tp_size, pp_size)]
    for name, part in whole.items():
        held = [each for rank in ranks for each in rank if each.name == name]
        if name in ("embedding", "lm_head"):
            assert [each.shape for each in held] == [part.shape] * tp_size
        elif name.startswith("layers."):
            assert sum(each.elements for each in held) == part.elements
            assert {each.kind for each in held} == {"int8"}
    assert sum(name.endswith("mlp.down") for name in whole) == 5
    assert len(ranks) == tp_size * pp_size


def test_a_layer_that_is_kept_stays_so_on_its_stage() -> None:
    recipe = Recipe(weights=Int8WeightOnly(), keep=("layers.4.mlp.down",))
    last = rank_parts(CONFIG, recipe, Mapping(1, 2, 1))
    assert [part.kind for part in last if part.site == "mlp.down"] == ["int8", "float16"]


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="2 key/value heads over tp_size 4; allowed: divisors of 2"):
        rank_parts(CONFIG, Recipe(), Mapping(4))
