"""Conversions that need ranges: every mode re-derived in numpy, read back, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from tests.checkpoint.breakable import Breakable
from tests.quantization import seen_ranges
from tests.quantization import stated_in_numpy as stated
from workbench.checkpoint.cast import WeightWarning
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified import load_checkpoint, verify_checksum
from workbench.errors import CheckpointError, RecipeError
from workbench.model.numerics import absmax_scale
from workbench.model.weights import KVScales, LayerWeights, ModelWeights
from workbench.progress import ProgressEvent
from workbench.quantization.convert import convert, plan_conversion
from workbench.quantization.layer_conversion import projection_rows
from workbench.quantization.quantize import LinearFacts, quantize_linear
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.smoothquant import smooth_layer
from workbench.recipe import (
    INPUT_SCALES,
    SMOOTHING_GROUPS,
    WEIGHT_SCALES,
    Int4WeightOnly,
    Int8KVCache,
    Int8WeightOnly,
    Recipe,
    SmoothQuant,
)
from workbench.runtime.session import SessionOptions, TorchSession

SMOOTHQUANT = [
    SmoothQuant(weight, activation, alpha)
    for weight, activation, alpha in zip(
        WEIGHT_SCALES * 2, [*INPUT_SCALES, *reversed(INPUT_SCALES)], (0.0, 0.5, 0.85, 1.0), strict=True
    )
]
MODES: dict[str, dict[str, Any]] = {
    "dense": {},
    "int8": {"weights": Int8WeightOnly()},
    **{f"int4_{group}": {"weights": Int4WeightOnly(group)} for group in (128, 64, 32, 0)},
    **{f"sq_{how.weight}_{how.activation}": {"weights": how} for how in SMOOTHQUANT},
    "sq_unsmoothed": {"weights": SmoothQuant(groups=(), activation="per_tensor")},
    "sq_with_head": {"weights": SmoothQuant(activation="per_tensor"), "keep": ()},
}
CACHES = {
    "": None,
    "kv_heads": Int8KVCache(),
    "kv_tensor": Int8KVCache("per_tensor"),
    "kv_clipped": Int8KVCache(percentile=99.0),
}

ranges_of = functools.cache(seen_ranges.ranges_of)


@pytest.fixture
def model(random_model_dir: Callable[..., Path]) -> Path:
    return random_model_dir(kv_heads=2)


PROJECTIONS = {
    "qkv": ["q_proj", "k_proj", "v_proj"],
    "o": ["o_proj"],
    "gate_up": ["gate_proj", "up_proj"],
    "down": ["down_proj"],
}
STORED = {
    "qkv": ["attention.qkv"],
    "o": ["attention.dense"],
    "gate_up": ["mlp.fc", "mlp.gate"],
    "down": ["mlp.proj"],
}
SUFFIXES = ("weight", "bias", "per_channel_scale", "weight_scale", "input_scale")


def _stated_layer(model: Path, index: int, ranges: ActivationRanges) -> stated.Layer:
    prefix = f"model.layers.{index}."
    weights = {
        name.removeprefix(prefix).removeprefix("self_attn.").removeprefix("mlp."): tensor
        for name, tensor in load_file(model / "model.safetensors").items()
        if name.startswith(prefix)
    }
    inputs = {group: ranges.inputs[f"layers.{index}.{site}"].numpy() for group, site in SMOOTHING_GROUPS.items()}
    return stated.Layer(weights, inputs, head_dim=16)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("activation", INPUT_SCALES)
@pytest.mark.parametrize("weight", WEIGHT_SCALES)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_smoothquant_from_file_to_file_is_as_stated(
    random_model_dir: Callable[..., Path], tmp_path: Path, kv_heads: int, weight: str, activation: str, alpha: float
) -> None:
    model = random_model_dir(kv_heads=kv_heads)
    ranges = ranges_of(model)
    recipe = Recipe(dtype="float32", weights=SmoothQuant(weight, activation, alpha))
    convert(model, recipe, tmp_path / "out", ranges=ranges)
    stored = load_file(tmp_path / "out" / "rank0.safetensors")
    for index in range(2):
        layer = _stated_layer(model, index, ranges)
        stated.smooth(layer, dict.fromkeys(SMOOTHING_GROUPS, alpha))
        prefix = f"transformer.layers.{index}."
        assert np.array_equal(stored[f"{prefix}input_layernorm.weight"], layer.weights["input_layernorm.weight"])
        assert np.array_equal(
            stored[f"{prefix}post_layernorm.weight"], layer.weights["post_attention_layernorm.weight"]
        )
        for group in SMOOTHING_GROUPS:
            _check_linear(stored, prefix, layer, group, recipe.weights)


def _check_linear(stored: Mapping[str, Any], prefix: str, layer: stated.Layer, group: str, how: Any) -> None:
    matrices = [layer.weights[f"{name}.weight"] for name in PROJECTIONS[group]]
    fused = np.concatenate(matrices)
    rows = [len(matrix) for matrix in matrices]
    integers, scale = stated.int8_rows(fused) if how.weight == "per_channel" else stated.int8_projections(fused, rows)
    names = STORED[group]
    found = {suffix: [stored.get(f"{prefix}{name}.{suffix}") for name in names] for suffix in SUFFIXES}
    assert np.array_equal(np.concatenate(found["weight"]), integers)
    biases = [layer.weights[f"{name}.bias"] for name in PROJECTIONS[group] if f"{name}.bias" in layer.weights]
    if biases:
        assert np.array_equal(np.concatenate(found["bias"]), np.concatenate(biases))
    if how.activation == "per_token":
        assert np.array_equal(np.concatenate(found["per_channel_scale"]), scale)
        assert found["input_scale"] == [None] * len(names)
        return
    input_scale = stated.scale_of(layer.inputs[group].max())
    assert np.array_equal(np.concatenate(found["weight_scale"]), scale)
    assert all(part == [input_scale] for part in found["input_scale"])


# ---- reading back


def _in_memory(model: Path, recipe: Recipe, ranges: ActivationRanges) -> ModelWeights:
    """The weights that a checkpoint must hold, without any file of ours."""
    source = HFCheckpoint.open(model)
    config, dtype, how = source.config, getattr(torch, recipe.dtype), recipe.weights
    dense = source.weights(torch.float32)
    layers = []
    inputs, outputs = dict(ranges.inputs), dict(ranges.outputs)
    for index, layer in enumerate(dense.layers):
        if isinstance(how, SmoothQuant):
            smoothed = smooth_layer(layer, index, config, ranges, how)
            layer = smoothed.weights
            inputs.update(smoothed.inputs)
            outputs.update(smoothed.outputs)
        linears = {}
        for group, site in SMOOTHING_GROUPS.items():
            name = f"layers.{index}.{site}"
            facts = LinearFacts(name, inputs[name], projection_rows(config, site))
            linears[group] = quantize_linear(getattr(layer, group), recipe.weights_of(name), dtype, facts)
        scales = None
        if recipe.kv_cache is not None:
            smooth = isinstance(how, SmoothQuant) and "o" in how.groups
            values = outputs[f"layers.{index}.attention.qkv"][-32:].view(2, 16).amax(1) if smooth else None
            scales = _kv_scales(ranges, index, recipe.kv_cache, values)
        layers.append(
            LayerWeights(
                attention_norm=layer.attention_norm.to(dtype),
                mlp_norm=layer.mlp_norm.to(dtype),
                kv_scales=scales,
                **linears,
            )
        )
    assert dense.embedding is not None
    assert dense.final_norm is not None
    head = quantize_linear(
        dense.lm_head, recipe.weights_of("lm_head"), dtype, LinearFacts("lm_head", inputs["lm_head"])
    )
    return ModelWeights(layers, dense.embedding.to(dtype), dense.final_norm.to(dtype), head)


def _kv_scales(ranges: ActivationRanges, index: int, how: Int8KVCache, values: Tensor | None) -> KVScales:
    key, value = (ranges.kv_absmax(index, part, how.percentile) for part in ("key", "value"))
    value = value if values is None else values
    if how.granularity == "per_tensor":
        key, value = key.max(), value.max()
    return KVScales(absmax_scale(key), absmax_scale(value))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("mode", MODES)
def test_reading_back_gives_identical_logits(model: Path, tmp_path: Path, mode: str, cache: str) -> None:
    recipe = Recipe(dtype="bfloat16", kv_cache=CACHES[cache], **MODES[mode])
    ranges = ranges_of(model)
    weights = _in_memory(model, recipe, ranges)
    checkpoint = convert(model, recipe, tmp_path / "out", ranges=ranges)
    verify_checksum(tmp_path / "out")
    ids = seen_ranges.some_ids(checkpoint.config)
    options = SessionOptions(torch.bfloat16, backend="torch")
    expected = TorchSession(checkpoint.config, weights, options).logits(ids)
    found = TorchSession(checkpoint.config, load_checkpoint(tmp_path / "out").weights, options).logits(ids)
    if cache == "kv_clipped" and mode.startswith("sq_") and mode != "sq_unsmoothed":
        # The percentile of smoothed values is an estimate; its own test follows.
        assert found.shape == expected.shape
    else:
        assert torch.equal(found, expected)
    assert bool(found.isfinite().all())


def test_a_percentile_of_smoothed_values(model: Path, tmp_path: Path) -> None:
    recipe = Recipe(dtype="float32", weights=SmoothQuant(), kv_cache=Int8KVCache(percentile=90.0))
    ranges = ranges_of(model)
    checkpoint = convert(model, recipe, tmp_path / "out", ranges=ranges)
    dense = ModelWeights(
        [
            smooth_layer(layer, i, checkpoint.config, ranges, SmoothQuant()).weights
            for i, layer in enumerate(_dense(model))
        ],
        checkpoint.weights.embedding,
        checkpoint.weights.final_norm,
        checkpoint.weights.lm_head,
    )
    taps = seen_ranges.taps_of(checkpoint.config, dense)
    for index, layer in enumerate(checkpoint.weights.layers):
        assert layer.kv_scales is not None
        for part, scale in (("key", layer.kv_scales.key), ("value", layer.kv_scales.value)):
            heads = taps[f"layers.{index}.attention.{part}"].abs().transpose(0, 1).flatten(1)
            covered = (heads <= 127 * scale[:, None]).float().mean(1)
            assert bool((covered > (0.89 if part == "key" else 0.8)).all())
            assert bool((covered < (0.92 if part == "key" else 0.97)).all())


def _dense(model: Path) -> Any:
    return HFCheckpoint.open(model).layers(torch.float32)


def test_a_cache_does_not_change_the_weights(model: Path, tmp_path: Path) -> None:
    ranges = ranges_of(model)
    plain = convert(model, Recipe(weights=Int8WeightOnly()), tmp_path / "plain").weights.layers[1]
    cached = convert(
        model, Recipe(weights=Int8WeightOnly(), kv_cache=Int8KVCache()), tmp_path / "kv", ranges=ranges
    ).weights.layers[1]
    assert torch.equal(plain.qkv.weight, cached.qkv.weight)
    assert plain.kv_scales is None
    assert cached.kv_scales is not None


@pytest.mark.parametrize("mode", MODES)
def test_the_plan_is_what_is_written(model: Path, tmp_path: Path, mode: str) -> None:
    recipe = Recipe(kv_cache=Int8KVCache(), **MODES[mode])
    plan = plan_conversion(model, recipe)
    convert(model, recipe, tmp_path / "out", ranges=ranges_of(model))
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= plan.disk_bytes < written + 70_000


def test_progress_reaches_its_end(model: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    recipe = Recipe(weights=SmoothQuant(), kv_cache=Int8KVCache())
    convert(model, recipe, tmp_path / "out", ranges=ranges_of(model), report=events.append)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-2].done <= events[-1].done == events[-1].total
    assert events[-1].unit == "B"


def test_kept_layers_stay_dense_and_smoothed(model: Path, tmp_path: Path) -> None:
    ranges = ranges_of(model)
    recipe = Recipe(
        dtype="float32",
        weights=SmoothQuant(activation="per_tensor"),
        keep=("lm_head", "layers.0.mlp.down", "layers.1.attention.o"),
    )
    layers = convert(model, recipe, tmp_path / "out", ranges=ranges).weights.layers
    smoothed = smooth_layer(_dense(model)[0], 0, HFCheckpoint.open(model).config, ranges, SmoothQuant()).weights
    assert torch.equal(layers[0].down.weight, smoothed.down.weight)
    names = set(load_file(tmp_path / "out" / "rank0.safetensors"))
    assert "transformer.layers.0.mlp.quantization_scaling_factor" not in names
    assert "transformer.layers.1.mlp.quantization_scaling_factor" in names
    assert "transformer.layers.1.attention.dense.smoother" not in names


def _with_nan(model: Path, folder: Path, name: str) -> ActivationRanges:
    """A copy of the model with two NaN in a tensor of layer 1, and the sound model's ranges as if they were its own."""
    shutil.copytree(model, folder)
    broken = Breakable(folder, "model.safetensors")
    broken.edit_tensors(lambda tensors: tensors[f"model.layers.1.{name}"].view(-1)[5:7].fill_(float("nan")))
    ranges = ranges_of(model)
    source = dataclasses.replace(ranges.source[0], model_fingerprint=HFCheckpoint.open(folder).fingerprint())
    return dataclasses.replace(ranges, source=(source,))


def test_biases_that_are_no_numbers_are_told(model: Path, tmp_path: Path) -> None:
    ranges = _with_nan(model, tmp_path / "model", "self_attn.o_proj.bias")
    with pytest.warns(WeightWarning, match=r"layers\.1\.attention\.o holds 2 values that are NaN or infinite"):
        convert(tmp_path / "model", Recipe(weights=SmoothQuant()), tmp_path / "out", ranges=ranges)


# Unsmoothed, the scale is what fails; smoothed, even a layer that is kept would spoil the norm before it.
@pytest.mark.parametrize(("groups", "keep"), [((), ()), (("o", "down"), ("layers.1.mlp.gate_up",))])
def test_weights_that_are_no_numbers_are_not_quantized(
    model: Path, tmp_path: Path, groups: tuple[str, ...], keep: tuple[str, ...]
) -> None:
    ranges = _with_nan(model, tmp_path / "model", "mlp.gate_proj.weight")
    recipe = Recipe(weights=SmoothQuant(groups=groups), keep=keep)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.gate_up holds 2 values that are NaN or infinite, which"
    ):
        convert(tmp_path / "model", recipe, tmp_path / "out", ranges=ranges)


# ---- what is refused


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        (Recipe(weights=SmoothQuant()), "smoothing"),
        (Recipe(weights=SmoothQuant(groups=(), activation="per_tensor")), "activations with one scale per tensor"),
        (Recipe(kv_cache=Int8KVCache()), "an INT8 KV cache"),
    ],
)
def test_ranges_that_are_not_given(model: Path, tmp_path: Path, recipe: Recipe, what: str) -> None:
    with pytest.raises(
        RecipeError, match=f"asks for {what}, which needs ranges, and none.*; run 'workbench calibrate'"
    ):
        convert(model, recipe, tmp_path / "out")


def test_smoothquant_per_token_without_smoothing_needs_no_ranges(model: Path, tmp_path: Path) -> None:
    convert(model, Recipe(weights=SmoothQuant(groups=())), tmp_path / "out")


@pytest.mark.parametrize("recipe", [Recipe(weights=SmoothQuant()), Recipe(kv_cache=Int8KVCache())])
def test_ranges_of_another_model(
    model: Path, random_model_dir: Callable[..., Path], tmp_path: Path, recipe: Recipe
) -> None:
    other = ranges_of(random_model_dir(kv_heads=2, seed=1))
    with pytest.raises(CheckpointError, match=r"the ranges are of model .*; allowed: ranges of model"):
        convert(model, recipe, tmp_path / "out", ranges=other)


def test_ranges_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    ranges = ranges_of(model)
    wrong = dataclasses.replace(ranges, outputs={**ranges.outputs, "lm_head": torch.ones(5)})
    with pytest.raises(CheckpointError, match=r"the ranges of the outputs of lm_head are \[5\]; allowed: \[97\]"):
        convert(model, Recipe(weights=SmoothQuant()), tmp_path / "out", ranges=wrong)


def test_nan_activations(model: Path) -> None:
    ranges = ranges_of(model)
    spoiled = ranges.inputs["layers.0.mlp.down"].clone()
    spoiled[3] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.down hold NaN or infinite values; calibrate again"):
        dataclasses.replace(ranges, inputs={**ranges.inputs, "layers.0.mlp.down": spoiled})


def test_an_alpha_for_a_layer_that_the_model_lacks(model: Path) -> None:
    recipe = Recipe(weights=SmoothQuant(alpha_by_group={"layers.7.down": 0.4}))
    with pytest.raises(
        RecipeError, match=r"alpha_by_group names 'layers\.7\.down', which this.*; allowed: layers 0 to 1"
    ):
        plan_conversion(model, recipe)


def test_int4_of_an_odd_width(random_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp\.down has 161 input channels"):
        plan_conversion(random_model_dir(intermediate=161), Recipe(weights=Int4WeightOnly()))
