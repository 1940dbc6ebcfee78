"""The network check passes right networks and finds wrong ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.random_model import SMALL, random_weights
from tests.tolerances import NETWORK_CHECK_RATIO
from workbench.engine import check as check_module
from workbench.engine.check import NOISE_FLOOR, CheckOptions, check_network
from workbench.engine.kernels import collecting_logger
from workbench.engine.network import DecoderNetwork, build_network
from workbench.model.config import ModelConfig, RopeScaling
from workbench.model.internlm import InternLM
from workbench.model.rotary import rotary_tables, stretched
from workbench.model.weights import (
    DenseWeight,
    Int4GroupWeight,
    Int8Weight,
    LayerWeights,
    ModelWeights,
    SmoothQuantWeight,
)
from workbench.recipe import BuildLimits

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

LIMITS = BuildLimits(max_batch_size=4, max_input_len=48, max_output_len=8)
DEEP = dataclasses.replace(SMALL, num_layers=4, hidden_size=64, intermediate_size=96, head_dim=16, vocab_size=211)


def decoder(config: ModelConfig, weights: ModelWeights) -> InternLM:
    return InternLM(config, weights, rotary_tables(config, LIMITS.max_seq_len))


def network_of(model: InternLM, dtype: torch.dtype) -> DecoderNetwork:
    return build_network(trt, trt.Builder(collecting_logger(trt)), model, dtype, LIMITS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [DenseWeight, Int8Weight])
@pytest.mark.parametrize("int8_cache", [False, True])
@pytest.mark.parametrize("sample", [False, True])
def test_right_networks_pass(dtype: torch.dtype, kind: type, int8_cache: bool, sample: bool) -> None:
    weights = random_weights(DEEP, dtype, kind, int8_cache=int8_cache)
    check = check_network(trt, network_of(decoder(DEEP, weights), dtype), CheckOptions(sample=sample))
    assert check, check.failures.to_string()
    assert check.sampled is sample
    assert len(check.frame) == (40 if sample else 52)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_per_token_smoothquant_passes(dtype: torch.dtype) -> None:
    weights = random_weights(DEEP, dtype, SmoothQuantWeight)
    check = check_network(trt, network_of(decoder(DEEP, weights), dtype))
    assert check, check.failures.to_string()


@pytest.mark.parametrize("kind", [DenseWeight, Int4GroupWeight, SmoothQuantWeight])
def test_weights_in_parts_give_the_same_verdict(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are computed with a few rows at a time; the result may differ in the last bits of a sum."""
    network = network_of(decoder(DEEP, random_weights(DEEP, torch.float16, kind)), torch.float16)
    whole = check_network(trt, network).frame
    monkeypatch.setattr(check_module, "CHUNK_VALUES", 7 * DEEP.hidden_size)
    parts = check_network(trt, network).frame
    assert list(parts["tap"]) == list(whole["tap"])
    assert parts["passed"].all()
    # Every sum is of the same products, so the reference itself stays.
    assert parts["torch_error"].to_list() == pytest.approx(whole["torch_error"].to_list(), rel=0.2, abs=1e-6)


LINEAR = dataclasses.replace(DEEP, rope_scaling=RopeScaling("linear", 4.0))
STRETCHED = stretched(dataclasses.replace(DEEP, max_position_embeddings=32, rope_theta=5e7), 64)


@pytest.mark.parametrize("config", [LINEAR, STRETCHED], ids=["linear", "stretched"])
def test_scaled_rope_passes(config: ModelConfig) -> None:
    """The network turns by the tables of the scaled model, and not by those of the plain one."""
    weights = random_weights(config)
    network = network_of(decoder(config, weights), torch.float32)
    assert check_network(trt, network, CheckOptions(sample=False))
    network.model.rotary = rotary_tables(DEEP, LIMITS.max_seq_len)
    assert not check_network(trt, network, CheckOptions(sample=False))


def _changed(weights: ModelWeights, layer: int, change: Callable[[LayerWeights], LayerWeights]) -> ModelWeights:
    layers = list(weights.layers)
    layers[layer] = change(layers[layer])
    return dataclasses.replace(weights, layers=layers)


def _without_bias(layer: LayerWeights) -> LayerWeights:
    return dataclasses.replace(layer, qkv=dataclasses.replace(layer.qkv, bias=None))


def _rows_rolled(layer: LayerWeights) -> LayerWeights:
    return dataclasses.replace(layer, gate_up=DenseWeight(layer.gate_up.weight.roll(1, 0)))


def _one_weight_off(layer: LayerWeights) -> LayerWeights:
    weight = layer.down.weight.clone()
    weight[3, 5] += 1.0
    return dataclasses.replace(layer, down=DenseWeight(weight))


FAULTS: dict[str, tuple[Callable[[LayerWeights], LayerWeights], str]] = {
    "a bias left out": (_without_bias, "layers.2.attention.qkv"),
    "rows shifted": (_rows_rolled, "layers.2.mlp.gate_up"),
    "one weight wrong": (_one_weight_off, "layers.2.mlp.down"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_networks_are_found_where_they_are_wrong(fault: str) -> None:
    change, tap = FAULTS[fault]
    weights = random_weights(DEEP, torch.float16)
    wrong = network_of(decoder(DEEP, _changed(weights, 2, change)), torch.float16)
    judged = dataclasses.replace(wrong, model=decoder(DEEP, weights))
    check = check_network(trt, judged)
    assert not check
    assert check.failures.iloc[0]["tap"] == tap
    frame = check.frame
    allowed = (NETWORK_CHECK_RATIO * frame["torch_error"]).clip(lower=NOISE_FLOOR)
    assert (frame["passed"] == (frame["network_error"] <= allowed)).all()
    assert frame["passed"].any()


def test_another_epsilon_and_another_base_are_found() -> None:
    weights = random_weights(DEEP, torch.float16)
    for wrong in (dataclasses.replace(DEEP, norm_epsilon=0.05), dataclasses.replace(DEEP, rope_theta=500.0)):
        network = network_of(decoder(wrong, weights), torch.float16)
        assert not check_network(trt, dataclasses.replace(network, model=decoder(DEEP, weights)))


def test_progress_and_what_it_covers_are_told() -> None:
    events: list[Any] = []
    weights = random_weights(DEEP, torch.float16)
    check = check_network(trt, network_of(decoder(DEEP, weights), torch.float16), report=events.append)
    assert [event.done for event in events] == [0, 1, 2, 3, 4]
    assert "does not cover: the numerics of the compiled kernels" in check.limits_text
    assert set(check.worst) == {"tap", "torch_error", "network_error", "ratio", "passed"}
