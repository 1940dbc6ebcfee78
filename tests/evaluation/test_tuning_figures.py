"""The table of tuned recipes, on a random model: which recipes it holds, and that tuned ones were tuned."""

from __future__ import annotations

import pandas as pd

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.evaluation.tuning_figures import to_markdown, tuning_recipes
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.row_sample import load_rows


def test_every_granularity_has_its_global_and_tuned_recipes(random_model_dir, random_calibration):
    source = HFCheckpoint.open(random_model_dir())
    search = AlphaSearch(source, ActivationRanges.load(random_calibration), load_rows(random_calibration))
    recipes = tuning_recipes(search, "float32")
    assert len(recipes) == 16
    assert recipes["weights per channel, activations per token: not smoothed"].weights.groups == ()
    assert recipes["weights per tensor, activations per tensor: alpha 0.9"].weights.alpha == 0.9
    for name, recipe in recipes.items():
        assert len(recipe.weights.alpha_by_group) == (8 if "tuned" in name else 0)
    tuned = recipes["weights per channel, activations per token: tuned by group"].weights
    plain = recipes["weights per channel, activations per token: alpha 0.85"].weights
    assert search.error(1, "o", tuned).error < search.error(1, "o", plain).error


def test_the_table_names_its_command():
    row = {"recipe": "x", "perplexity": 12.0}
    row |= {f"{name}{end}": 0.5 for name in ("kl", "top1") for end in ("", "_low", "_high")}
    text = to_markdown(pd.DataFrame([row]), (8, 512), "python -m x")
    assert "| x | 12.000 | 0.5000 (0.5000 to 0.5000) | 0.500 (0.500 to 0.500) |" in text
    assert "8 windows of 512 tokens" in text
    assert "`python -m x`" in text
