"""Every quantization x cache x half type as a network: checked by interpretation, and compiled as it was asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.random_model import SMALL, random_weights
from workbench.engine.build import asked_precision, weight_shape
from workbench.engine.check import check_network
from workbench.engine.kernels import collecting_logger, compiled_linears, error_messages, parse_kernels
from workbench.engine.network import add_profiles, build_network
from workbench.model.internlm import InternLM
from workbench.model.numerics import pack_int4, quantize_int4_groups, quantize_per_channel, quantize_per_tensor
from workbench.model.rotary import rotary_tables
from workbench.model.weights import (
    DenseWeight,
    Int4GroupWeight,
    Int8Weight,
    LayerWeights,
    LinearWeight,
    ModelWeights,
    SmoothQuantWeight,
)
from workbench.recipe import BuildLimits

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

LIMITS = BuildLimits(max_batch_size=4, max_input_len=48, max_output_len=16, targets=("sm80", "sm89"))
# 192 = 128 + 64: groups of 128 leave a shorter one, as the embedded model's 576 does.
CONFIG = dataclasses.replace(
    SMALL, hidden_size=192, intermediate_size=320, num_heads=4, num_kv_heads=2, head_dim=48, vocab_size=211
)


def quantized(weight: LinearWeight, mode: str) -> LinearWeight:
    assert isinstance(weight, DenseWeight)
    kind, _, variant = mode.partition(":")
    if kind == "int4":
        group = int(variant)
        integers, scale = quantize_int4_groups(weight.weight, group)
        return Int4GroupWeight(pack_int4(integers), scale, group or weight.weight.shape[1], weight.bias)
    per_tensor = "per_tensor weight" in variant
    integers, scale = (quantize_per_tensor if per_tensor else quantize_per_channel)(weight.weight)
    scale = scale.expand(weight.weight.shape[0]).contiguous()
    if kind == "int8":
        return Int8Weight(integers, scale, weight.bias)
    static: Tensor | None = torch.tensor(0.02) if "static" in variant else None
    return SmoothQuantWeight(integers, scale, weight.bias, static)


def quantized_layer(layer: LayerWeights, mode: str) -> LayerWeights:
    changed = {site: quantized(getattr(layer, site), mode) for site in ("qkv", "o", "gate_up", "down")}
    return dataclasses.replace(layer, **changed)


def compiled(network: Any, builder: Any) -> dict[str, str]:
    """Build for real and read what the log says of each linear layer."""
    logger = collecting_logger(trt)
    logger.clear()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(LIMITS.targets)
    for index, target in enumerate(LIMITS.targets):
        config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], index)
    add_profiles(builder, config, network)
    plan = builder.build_serialized_network(network.network, config)
    assert plan is not None, error_messages(logger.messages)
    shapes = {name: weight_shape(weight) for name, weight in network.record.linears.items()}
    found = compiled_linears(parse_kernels(logger.messages), list(shapes), shapes)
    return {name: linear.precision for name, linear in found.items()}


MODES = [
    "dense", "int8", "int4:128", "int4:64", "int4:32", "int4:0",
    "smoothquant:per_channel weight, per_token", "smoothquant:per_channel weight, static",
    "smoothquant:per_tensor weight, per_token", "smoothquant:per_tensor weight, static",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("int8_cache", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_networks_are_right_and_compile_as_asked(mode: str, int8_cache: bool, dtype: torch.dtype) -> None:
    dense = random_weights(CONFIG, dtype, int8_cache=int8_cache)
    layers = [layer if mode == "dense" else quantized_layer(layer, mode) for layer in dense.layers]
    weights = ModelWeights(layers, dense.embedding, dense.final_norm, dense.lm_head)
    model = InternLM(CONFIG, weights, rotary_tables(CONFIG, LIMITS.max_seq_len))
    builder = trt.Builder(collecting_logger(trt))
    network = build_network(trt, builder, model, dtype, LIMITS)
    check = check_network(trt, network)
    assert check, check.failures.to_string()
    asked = {name: asked_precision(weight, dtype) for name, weight in network.record.linears.items()}
    assert compiled(network, builder) == asked
