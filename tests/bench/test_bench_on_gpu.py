"""Everything that a bench does, on a CUDA device: the same choices and nearly the same numbers as on the CPU."""

from __future__ import annotations

import pytest
import torch

from workbench.bench.bench import Bench, CalibrationRequest
from workbench.bench.comparing import ComparisonRequest, compare_models
from workbench.bench.models import OpenModels
from workbench.recipe import Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]

TEXT = "the quick brown fox jumps over the lazy dog 0123456789 " * 60
SMALL = CalibrationRequest([TEXT], samples=4, length=16, tune=4)


@pytest.fixture
def benches(speaking_model_dir, tmp_path):
    made = [Bench(speaking_model_dir, cache_dir=tmp_path / device, device=device) for device in ("cpu", "cuda")]
    for bench in made:
        bench.calibrate(SMALL).start().result(120)
    return made


def test_ranges_and_smoothing_agree(benches):
    ranges = [bench.smoothed_ranges() for bench in benches]
    for linear in ("layers.0.attention.qkv", "layers.1.attention.o", "layers.1.mlp.down"):
        on_cpu, on_gpu = (each.input_absmax(linear) for each in ranges)
        assert on_gpu.device.type == "cpu"
        torch.testing.assert_close(on_gpu, on_cpu, rtol=0.05, atol=0.02)


def test_tuning_finds_alphas_of_like_errors(benches):
    for bench in benches:
        bench.tune("layers.1").start().result(120)
    on_cpu, on_gpu = benches
    for group in ("qkv", "o", "gate_up", "down"):
        there = on_cpu.search.error(1, group, on_gpu.smoothing).error
        assert on_gpu.search.error(1, group, on_gpu.smoothing).error == pytest.approx(there, rel=0.1)


def test_the_kv_study_agrees(benches, monkeypatch):
    monkeypatch.setattr("workbench.bench.bench.KV_LENGTH", 16)
    errors = [bench.study_kv().start().result(120).error(1, Int8KVCache()).relative_l2 for bench in benches]
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])  # on the plain op set, and on the GPU's own kernels
@pytest.mark.parametrize("weights", [None, Int8WeightOnly(), SmoothQuant()], ids=["dense", "int8", "smoothquant"])
def test_a_comparison_runs_on_the_gpu(benches, weights, dtype):
    bench = benches[1]
    bench.recipe = Recipe(str(bench.model_dir), dtype, weights)
    models = OpenModels(bench)
    reference, candidate = models.sides("hf", None)
    assert reference.model.reference.device.type == "cuda"
    assert candidate.model.device.type == "cuda"
    assert candidate.model.backend == ("triton" if dtype == "float16" else "torch")
    models.close()
    diff = compare_models(bench, ComparisonRequest(windows=1, length=16)).diff
    assert 0 < diff.frame["relative_l2"].median() < 0.2


def test_both_speak_on_the_gpu(benches):
    bench = benches[1]
    speakers = OpenModels(bench).speakers(["hf", Recipe(str(bench.model_dir), "bfloat16", Int8WeightOnly())])
    logits = [speaker.session.prefill([[5, 6, 7]]).cpu() for speaker in speakers]
    torch.testing.assert_close(logits[0], logits[1], rtol=0.1, atol=0.5)
