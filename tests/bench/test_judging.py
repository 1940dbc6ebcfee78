"""The judge measures the recipe against one alpha for all and no smoothing, on windows of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.bench.bench import Bench
from workbench.bench.judging import CURRENT, JudgeOptions, contenders, judging_job
from workbench.errors import WorkbenchError
from workbench.recipe import Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant


class Tokenizer:
    """Every word is a token of the random model's vocabulary."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [len(word) % 97 for word in text.split()]


@pytest.fixture
def bench(random_model_dir: Callable[..., Path], random_calibration: Path, tmp_path: Path) -> Bench:
    bench = Bench(random_model_dir(), cache_dir=tmp_path, device="cpu")
    bench.use_calibration(random_calibration)
    bench._tokenizer = Tokenizer()
    return bench


def test_a_tuned_recipe_stands_against_one_alpha_and_none() -> None:
    tuned = Recipe(weights=SmoothQuant(activation="per_tensor", alpha=0.5), kv_cache=Int8KVCache(), keep=())
    assert contenders(tuned) == {
        CURRENT: tuned,
        "alpha 0.85 everywhere": replace(tuned, weights=SmoothQuant(activation="per_tensor")),
        "not smoothed": replace(tuned, weights=SmoothQuant(activation="per_tensor", groups=())),
    }


def test_no_recipe_stands_twice() -> None:
    assert list(contenders(Recipe(weights=SmoothQuant()))) == [CURRENT, "not smoothed"]
    assert list(contenders(Recipe(weights=SmoothQuant(groups=())))) == [CURRENT, "alpha 0.85 everywhere"]
    assert list(contenders(Recipe(weights=Int8WeightOnly()))) == [CURRENT]


def test_the_whole_model_is_asked(bench: Bench) -> None:
    bench.set_alpha(0.5)
    judgement = judging_job(bench, options=JudgeOptions(windows=2, length=8)).start().result(120)
    assert list(judgement.table["recipe"]) == ["float32", CURRENT, "alpha 0.85 everywhere", "not smoothed"]
    assert judgement.recipes[CURRENT] is bench.recipe
    assert (judgement.table["kl"][1:] > 0).all()
    assert (judgement.table["kl_low"] <= judgement.table["kl"]).all()
    assert len(bench.workspace.checkpoints()) == 3
    assert bench.checkpoint() in bench.workspace.checkpoints()
    assert list(bench.workspace.folder.glob("judge-*")) == []


def test_what_the_bench_has_converted_is_used_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.checkpoint()
    recipe = bench.recipe
    for module in ("workbench.quantization.convert", "workbench.evaluation.tradeoff"):
        monkeypatch.setattr(f"{module}.convert", None)
    judgement = judging_job(bench, {"it": recipe}, JudgeOptions(windows=1, length=8)).start().result(120)
    assert list(judgement.table["recipe"]) == ["float32", "it"]


def test_another_calibration_ends_the_judgement(bench: Bench, random_calibration: Path) -> None:
    job = judging_job(bench, options=JudgeOptions(windows=1, length=8))
    job.observe(lambda _change: bench.use_calibration(random_calibration), "event")
    with pytest.raises(WorkbenchError, match="another calibration was taken while recipes were judged; judge again"):
        job.start().result(120)


def test_open_models_make_room_for_the_judge(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.models.sides("hf", Recipe(dtype="float16"))
    monkeypatch.setattr("workbench.bench.models.free_bytes", lambda _device: 0)
    judging_job(bench, options=JudgeOptions(windows=1, length=8)).start().result(120)
    assert bench.models._open == {}


def test_recipes_can_be_named(bench: Bench) -> None:
    recipes = {"INT8": replace(bench.recipe, weights=Int8WeightOnly())}
    judgement = judging_job(bench, recipes, JudgeOptions(windows=1, length=8)).start().result(120)
    assert list(judgement.table["recipe"]) == ["float32", "INT8"]


def test_windows_fit_into_the_model(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    bench = Bench(random_model_dir(max_positions=8), Recipe(dtype="float16"), cache_dir=tmp_path, device="cpu")
    bench._tokenizer = Tokenizer()
    judgement = judging_job(bench, options=JudgeOptions(windows=1, length=64)).start().result(120)
    assert list(judgement.table["recipe"]) == ["float32", CURRENT]
    assert judgement.options == JudgeOptions(1, 8)
