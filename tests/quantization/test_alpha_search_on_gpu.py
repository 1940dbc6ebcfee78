"""The search for alpha on a CUDA device against the same on the CPU. Needs torch and safetensors only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.quantization.calibrated_models import MODELS, Calibrated, calibrated
from workbench.quantization.alpha_search import AlphaSearch, AlphaSearchOptions, tuned
from workbench.recipe import INPUT_SCALES, SMOOTHING_GROUPS, WEIGHT_SCALES, SmoothQuant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, random_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Calibrated:
    # Half precision, as a model for a GPU is stored.
    folder = random_model_dir(dtype="float16", hidden=128, **MODELS[request.param])
    return calibrated(folder, tmp_path_factory.mktemp("calibrated") / "ranges")


def search(model: Calibrated, device: str) -> AlphaSearch:
    return AlphaSearch(model.source, model.ranges, model.rows, AlphaSearchOptions(device=device))


@pytest.mark.parametrize("weight", WEIGHT_SCALES)
@pytest.mark.parametrize("activation", INPUT_SCALES)
def test_errors_equal_those_of_the_cpu(model: Calibrated, weight: str, activation: str) -> None:
    how = SmoothQuant(weight, activation, alpha_by_group={"layers.0.o": 0.4})
    here, there = search(model, "cpu"), search(model, "cuda")
    for group in SMOOTHING_GROUPS:
        expected, found = here.error(0, group, how), there.error(0, group, how)
        # An integer here and there rounds the other way where a power differs in its last bit.
        assert found.error == pytest.approx(expected.error, rel=1e-2)
        assert found.input_absmax.device.type == found.weight_absmax.device.type == "cpu"
        torch.testing.assert_close(found.input_absmax, expected.input_absmax)
        torch.testing.assert_close(found.weight_absmax, expected.weight_absmax)


def test_tuning_ends_where_the_cpu_says_it_is_good(model: Calibrated) -> None:
    how = SmoothQuant(activation="per_tensor")
    here, there = search(model, "cpu"), search(model, "cuda")
    curves = list(there.tune(how))
    result = tuned(how, curves)
    assert len(curves) == 2 * len(SMOOTHING_GROUPS)
    for curve in curves:
        assert here.error(curve.layer, curve.group, result).error == pytest.approx(curve.best[1], rel=1e-2)
