"""The GPU benchmark: what it counts, what it refuses and what it draws; its times are nobody's business here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from workbench.errors import BackendError, WorkbenchError
from workbench.evaluation.dummy_weights import DummyMode, dummy_weights
from workbench.evaluation.gpu_benchmark import (
    GpuBenchmarkOptions,
    GpuBenchmarkResult,
    GpuSpeed,
    gpu_benchmark,
    step_flops,
    timed_config,
)
from workbench.evaluation.gpu_roofline import plot_roofline
from workbench.model.presets import PRESETS
from workbench.model.weights import DenseWeight, Int4GroupWeight, SmoothQuantWeight

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL = replace(
    PRESETS["internlm-7b"], hidden_size=256, intermediate_size=352, num_layers=2, num_heads=4, num_kv_heads=4,
    head_dim=64, vocab_size=320,
)  # fmt: skip


def _speed(mode: str, batch: int, context: int) -> GpuSpeed:
    return GpuSpeed(mode, batch, context, 2.0 + batch, 500.0, 10**9, 0.5, 1e10 * batch, 10**9)


def test_operations_are_two_a_weight_and_four_a_key_element() -> None:
    config = PRESETS["internlm-7b"]
    weights = 32 * (4096 * 12288 + 4096 * 4096 + 3 * 4096 * 11008) + 103168 * 4096
    assert step_flops(config, 3, 100) == 3 * (2 * weights + 4 * 32 * 4096 * 100)


def test_a_model_is_timed_with_room_for_the_longest_case_and_plain_rope() -> None:
    short, long = GpuBenchmarkOptions(contexts=(128,)), GpuBenchmarkOptions(contexts=(8, 40000), steps=10)
    config = PRESETS["internlm2-7b"]
    assert config.rope_scaling is not None
    assert timed_config(config, short) == replace(config, rope_scaling=None)
    assert timed_config(config, long).max_position_embeddings >= 40010


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("int5",)}, "benchmark mode 'int5'; allowed: float16, int8, int4, w8a8"),
        ({"batches": (0,)}, r"benchmark batches \(0,\); allowed: whole numbers from 1"),
        ({"contexts": ()}, r"benchmark contexts \(\)"),
        ({"steps": 0}, r"benchmark steps \(0,\)"),
    ],
)
def test_options_that_cannot_be_timed_are_refused(options: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        GpuBenchmarkOptions(**options)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(BackendError, match="no CUDA GPU"):
        gpu_benchmark("small", SMALL)


def test_dummy_layers_have_the_models_shapes_and_are_drawn_when_asked_for() -> None:
    weights = dummy_weights(SMALL, DummyMode("int4", int8_cache=True), torch.device("cpu"))
    layer = weights.layers[1]
    assert len(list(weights.layers)) == 2
    assert isinstance(layer.down, Int4GroupWeight)
    assert layer.down.weight.shape == (256, 176)
    assert layer.down.weight_scale.shape == (256, 3)  # 352 = 2 * 128 + 96
    assert layer.qkv.bias is not None
    assert layer.kv_scales is not None
    assert isinstance(weights.lm_head, DenseWeight)
    assert isinstance(dummy_weights(SMALL, DummyMode("w8a8"), torch.device("cpu")).layers[0].o, SmoothQuantWeight)
    assert layer.gate_up.bias is None
    biased = dummy_weights(replace(SMALL, mlp_bias=True), DummyMode("int8"), torch.device("cpu")).layers[0]
    assert biased.gate_up.bias is not None
    assert biased.down.bias is not None
    with pytest.raises(IndexError):
        weights.layers[2]


def test_the_roofline_has_every_case_and_the_roof(tmp_path: Path) -> None:
    speeds = tuple(
        _speed(mode, batch, context) for mode in ("int4", "hf eager") for batch in (1, 8) for context in (128, 2048)
    )
    result = GpuBenchmarkResult("small", GpuBenchmarkOptions(), "GPU", {}, 3e12, speeds, ())
    figure = plot_roofline(result)
    (axes,) = figure.axes
    assert sum(len(points.get_offsets()) for points in axes.collections) == len(speeds)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "int4", "hf eager", "bandwidth of a copy: 3.00 TB/s"
    ]  # fmt: skip
    figure.savefig(tmp_path / "roofline.png")


@pytest.mark.gpu
@needs_gpu
def test_every_mode_is_timed() -> None:
    options = GpuBenchmarkOptions(batches=(1, 3), contexts=(8,), steps=4, hugging_face=False)
    result = gpu_benchmark("small", SMALL, options)
    assert [(s.mode, s.batch) for s in result.speeds] == [(m, b) for m in options.modes for b in (1, 3)]
    assert all(s.step_ms > 0 and s.moved_bytes > 0 and s.peak_bytes > 0 for s in result.speeds)
    by_mode = {s.mode: s.moved_bytes for s in result.speeds if s.batch == 1}
    assert by_mode["int4"] < by_mode["int8"] < by_mode["float16"]
    assert by_mode["float16+kv8"] < by_mode["float16"]
    assert json.dumps(result.to_dict())
    assert len(result.frame) == len(result.speeds)
