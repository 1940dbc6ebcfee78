"""The error of an INT8 KV cache against attention written once more in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.quantization import stated_in_numpy as stated
from tests.quantization.calibrated_models import MODELS, Calibrated, calibrated, random_windows
from workbench.errors import BackendError, CheckpointError, RecipeError
from workbench.model.config import ModelConfig
from workbench.quantization.attention_inputs import AttentionInputs, CollectOptions
from workbench.quantization.kv_error import KVCurve, KVError, KVStudy, collect_attention_inputs
from workbench.quantization.kv_scales import layer_kv_scales
from workbench.quantization.smoothed_ranges import SmoothedRanges
from workbench.quantization.smoothquant import smooth_layer
from workbench.recipe import Int8KVCache, SmoothQuant

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A calibrated model and where its attention inputs are."""

    model: Calibrated
    file: Path

    @property
    def config(self) -> ModelConfig:
        return self.model.source.config

    def study(self, **choices: Any) -> KVStudy:
        return KVStudy(self.config, self.file, choices.pop("ranges", self.model.ranges), **choices)


@pytest.fixture(scope="module")
def make(random_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    made: dict[Path, Case] = {}

    def one(**choices: Any) -> Case:
        folder = random_model_dir(**choices)
        if folder not in made:
            out = tmp_path_factory.mktemp("kv")
            model = calibrated(folder, out / "ranges")
            made[folder] = Case(
                model, collect_attention_inputs(model.source, random_windows(2, seed=1), out, CollectOptions("float32"))
            )
        return made[folder]

    return one


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, make: Callable[..., Case]) -> Case:
    return make(**MODELS[request.param])


@pytest.fixture
def gqa(make: Callable[..., Case]) -> Case:
    return make(**MODELS["gqa"])


# ---- attention once more


def heads_of(case: Case, layer: int, divisor: Doubles | None = None) -> tuple[Doubles, Doubles, Doubles]:
    """Query, key and value, ``[windows, heads, length, head_dim]``; RoPE applied, the query not scaled."""
    config = case.config
    qkv = AttentionInputs(case.file)(layer).numpy().astype(np.float64)
    if divisor is not None:
        qkv[..., -len(divisor) :] /= divisor
    heads = qkv.reshape(*qkv.shape[:2], -1, config.head_dim).transpose(0, 2, 1, 3)
    query, key, value = np.split(heads, [config.num_heads, config.num_heads + config.num_kv_heads], axis=1)
    half = config.head_dim // 2
    angles = np.arange(qkv.shape[1])[:, None] * config.rope_theta ** -(np.arange(half) / half)

    def rotated(x: Doubles) -> Doubles:
        first, second = x[..., :half], x[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    return rotated(query), rotated(key), value


def context_of(query: Doubles, key: Doubles, value: Doubles) -> Doubles:
    """``[windows, heads, length, head_dim]``."""
    shared = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, shared, 1), np.repeat(value, shared, 1)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def stored(x: Doubles, scale: torch.Tensor) -> Doubles:
    """Through INT8 and back."""
    by_head = scale.numpy().reshape(-1, 1, 1)
    return stated.int8(x.astype(np.float32), by_head).astype(np.float64) * by_head


def distance(found: Doubles, exact: Doubles) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("how", [Int8KVCache(), Int8KVCache("per_tensor"), Int8KVCache("per_head", 90.0)], ids=str)
def test_the_error_as_stated(case: Case, how: Int8KVCache) -> None:
    query, key, value = heads_of(case, 1)
    scales = layer_kv_scales(case.model.ranges, 1, case.config, how)
    exact, lossy = (
        context_of(query, key, value),
        context_of(query, stored(key, scales.key), stored(value, scales.value)),
    )
    found = case.study().error(1, how)
    assert found.relative_l2 == pytest.approx(distance(lossy, exact), rel=1e-3)
    shared = case.config.num_heads // case.config.num_kv_heads
    by_head = [distance(lossy[:, h : h + shared], exact[:, h : h + shared]) for h in range(0, exact.shape[1], shared)]
    np.testing.assert_allclose(found.by_head.numpy(), by_head, rtol=1e-3)
    assert torch.equal(found.key_scale, scales.key)
    assert torch.equal(found.value_scale, scales.value)
    for clipped, x, scale in ((found.key_clipped, key, scales.key), (found.value_clipped, value, scales.value)):
        assert clipped == np.mean(np.rint(np.abs(x / scale.numpy().reshape(-1, 1, 1))) > 127)
    assert found.layer == 1
    assert found.by_head.shape == (case.config.num_kv_heads,)


def test_values_that_smoothing_divides(case: Case) -> None:
    how, smoothing = Int8KVCache("per_head", 99.0), SmoothQuant(groups=("o",), alpha=0.7)
    dense = case.model.source.layers(torch.float32)[0]
    smoothed = smooth_layer(dense, 0, case.config, case.model.ranges, smoothing)
    ranges = SmoothedRanges(case.model.ranges, case.config, smoothing)
    ranges.add(0, smoothed)
    scales = layer_kv_scales(ranges.result(), 0, case.config, how)
    divisor = smoothed.scales["o"].numpy().astype(np.float64)
    query, key, value = heads_of(case, 0, divisor)
    lossy = context_of(query, stored(key, scales.key), stored(value, scales.value))
    shared = case.config.num_heads // case.config.num_kv_heads
    lossy = lossy * np.repeat(divisor.reshape(-1, 1, case.config.head_dim), shared, 0)
    found = case.study().error(0, how, smoothed.scales["o"])
    assert found.relative_l2 == pytest.approx(distance(lossy, context_of(*heads_of(case, 0))), rel=1e-3)
    assert torch.equal(found.value_scale, scales.value)
    assert torch.equal(found.key_scale, scales.key)
    assert found.relative_l2 != case.study().error(0, how).relative_l2


def test_a_percentile_clips(gqa: Case) -> None:
    study = gqa.study()
    shares = [study.error(0, Int8KVCache(percentile=percentile)) for percentile in (100.0, 95.0, 70.0)]
    for part in ("key_clipped", "value_clipped"):
        first, second, third = (getattr(each, part) for each in shares)
        assert first < 0.05 < second + 0.05
        assert first < second < third
        assert 0.2 < third < 0.4
    assert shares[0].relative_l2 < shares[1].relative_l2 < shares[2].relative_l2


def test_a_curve_is_the_error_at_each_percentile(gqa: Case) -> None:
    study = gqa.study()
    curve = study.curve(1, "per_tensor", (99.0, 80.0, 99.0))
    assert curve.percentiles == (80.0, 99.0)
    assert (curve.layer, curve.granularity) == (1, "per_tensor")
    for percentile, error in zip(curve.percentiles, curve.errors, strict=True):
        assert error.relative_l2 == study.error(1, Int8KVCache("per_tensor", percentile)).relative_l2
    assert len(study.curve(1, "per_head").errors) == 7


def test_the_best_of_a_curve_clips_least_of_equals() -> None:
    one = torch.ones(1)
    errors = [KVError(0, value, one, one, one, 0.0, 0.0) for value in (0.3, 0.1, 0.1, 0.2)]
    assert KVCurve(0, "per_head", (90.0, 95.0, 99.0, 100.0), tuple(errors)).best == (99.0, 0.1)


# ---- what is refused


def test_a_file_of_another_model(gqa: Case, make: Callable[..., Case]) -> None:
    message = r"holds attention inputs of model \w{12}; allowed: those of model \w{12}; collect them again with this"
    with pytest.raises(CheckpointError, match=message):
        gqa.study(ranges=make().model.ranges)


def test_ranges_without_histograms(gqa: Case) -> None:
    study = gqa.study(ranges=replace(gqa.model.ranges, kv_histograms={}))
    assert study.error(0, Int8KVCache()).relative_l2 > 0
    with pytest.raises(CheckpointError, match=r"the ranges hold no histogram layers\.0\.key"):
        study.error(0, Int8KVCache(percentile=99.0))


def test_no_such_layer_percentile_or_device(gqa: Case) -> None:
    with pytest.raises(RecipeError, match="the model has no layer 2; allowed: 0 to 1"):
        gqa.study().error(2, Int8KVCache())
    with pytest.raises(RecipeError, match="no percentile to try; allowed: one or more from 50 to 100"):
        gqa.study().curve(0, "per_head", ())
    with pytest.raises(RecipeError, match=r"kv_cache\.percentile is 10"):
        gqa.study().curve(0, "per_head", (10.0,))
    with pytest.raises(BackendError, match="device 'tpu'"):
        gqa.study(device="tpu")


def test_a_limit_is_what_the_largest_integer_stands_for(make: Callable[..., Case]) -> None:
    case = make()
    study = case.study()
    error = study.error(0, Int8KVCache("per_head", 100.0))
    assert torch.allclose(error.key_limit, case.model.ranges.keys[0])
    assert torch.allclose(error.value_limit, case.model.ranges.values[0])
    assert study.error(0, Int8KVCache("per_tensor", 100.0)).key_limit.shape == ()
    assert study.shape == (2, 12)
