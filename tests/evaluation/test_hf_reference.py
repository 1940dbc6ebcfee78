"""HFReference against the torch op set: every tap, in the dtypes that a comparison relies on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.random_model import random_weights
from tests.tolerances import HF_TAPS, relative_l2
from workbench.errors import CheckpointError, LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.model.numerics import quantize_per_channel
from workbench.model.taps import tap_names
from workbench.model.weights import SmoothQuantWeight
from workbench.quantization.quantize import quantize_linear
from workbench.recipe import Int4WeightOnly, Int8WeightOnly
from workbench.runtime.session import SessionOptions, TorchSession

KINDS = [
    {"kv_heads": 4, "qkv_bias": True, "output_bias": True},
    {"kv_heads": 2, "qkv_bias": False, "output_bias": False},
    {"kv_heads": 1, "qkv_bias": True, "output_bias": False},
    {"kv_heads": 4, "qkv_bias": False, "output_bias": True},
]


def _taps(model, ids):
    taps: dict[str, Tensor] = {}
    logits = model.logits(ids, lambda name, x: taps.__setitem__(name, x.clone()))
    return logits, taps


def _oracle(model, dtype):
    return TorchSession(model.config, model.weights, SessionOptions(dtype, "torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_tap_is_that_of_the_oracle(small_model, kind, dtype):
    model = small_model(**kind)
    logits, taps = _taps(HFReference.from_weights(model.config, model.weights, dtype), model.ids)
    expected_logits, expected = _taps(_oracle(model, dtype), model.ids)

    assert list(taps) == tap_names(model.config.num_layers) == list(expected)
    assert logits.dtype == expected_logits.dtype
    for name, tensor in expected.items():
        assert taps[name].shape == tensor.shape, name
        error = relative_l2(taps[name], tensor)
        assert error <= HF_TAPS[dtype], f"{name}: {error}"


def test_hooks_are_gone_after_a_pass(small_model):
    model = small_model()
    reference = HFReference.from_weights(model.config, model.weights, torch.float32)
    _, first = _taps(reference, model.ids)
    calls: list[str] = []
    reference.logits(model.ids, lambda name, _x: calls.append(name))
    assert calls == list(first)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in reference.model.modules())


@pytest.mark.parametrize("how", [Int8WeightOnly(), Int4WeightOnly(64)])
def test_weight_only_integers_are_multiplied_out(small_model, how):
    model = small_model()
    layer = model.weights.layers[0]
    down = quantize_linear(layer.down, how, torch.float32)
    weights = replace(model.weights, layers=[replace(layer, down=down), model.weights.layers[1]])
    model = replace(model, weights=weights)
    _, taps = _taps(HFReference.from_weights(model.config, weights, torch.float64), model.ids)
    _, expected = _taps(_oracle(model, torch.float64), model.ids)
    assert relative_l2(taps["layers.0.mlp.down"], expected["layers.0.mlp.down"]) <= HF_TAPS[torch.float64]


def test_heads_wider_than_their_share(small_model):
    model = small_model(kv_heads=2)
    config = replace(model.config, head_dim=2 * model.config.head_dim)
    model = replace(model, config=config, weights=random_weights(config))
    _, taps = _taps(HFReference.from_weights(config, model.weights, torch.float64), model.ids)
    for name, tensor in _taps(_oracle(model, torch.float64), model.ids)[1].items():
        assert relative_l2(taps[name], tensor) <= HF_TAPS[torch.float64], name


def test_generate_equals_a_loop_over_logits(small_model):
    model = small_model()
    reference = HFReference.from_weights(model.config, model.weights, torch.float32)
    prompts = [[5, 9, 11], [40]]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 6:
            token = int(reference.logits(torch.tensor([ids]))[0, -1].argmax())
            if token in model.config.eos_token_ids:
                break
            ids.append(token)
        expected.append(ids[len(prompt) :])
    assert reference.generate(prompts, 6) == expected


def test_generate_leaves_the_end_of_sequence_out(small_model):
    model = small_model()
    first = HFReference.from_weights(model.config, model.weights, torch.float32).generate([[5, 9, 11]], 3)[0]
    config = replace(model.config, eos_token_ids=(first[1],))
    ended = HFReference.from_weights(config, model.weights, torch.float32).generate([[5, 9, 11]], 3)[0]
    assert ended == first[: first.index(first[1])]


def test_one_stage_of_a_model_is_refused(small_model):
    model = small_model()
    with pytest.raises(CheckpointError, match="one pipeline stage's part; give the weights of a whole model"):
        HFReference.from_weights(model.config, replace(model.weights, embedding=None), torch.float32)


def test_quantized_activations_are_refused(small_model):
    model = small_model()
    layer = model.weights.layers[0]
    down = SmoothQuantWeight(*quantize_per_channel(layer.down.weight))
    weights = replace(model.weights, layers=[replace(layer, down=down), model.weights.layers[1]])
    match = r"layers\.0\.mlp\.down is a SmoothQuantWeight, whose activations are quantized; Hugging Face cannot run it"
    with pytest.raises(CheckpointError, match=match):
        HFReference.from_weights(model.config, weights, torch.float32)


@pytest.mark.parametrize(("length", "message"), [(65, "has 65 tokens; allowed: up to 64"), (0, "sequence is empty")])
def test_a_sequence_that_does_not_fit_is_refused(small_model, length, message):
    model = small_model()
    reference = HFReference.from_weights(model.config, model.weights, torch.float32)
    with pytest.raises(LimitError, match=message):
        reference.logits(torch.ones(1, length, dtype=torch.int64))
