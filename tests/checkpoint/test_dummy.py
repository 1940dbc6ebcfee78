"""Weights that no file holds: seeded, all different, cheap, and of a sane size."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from workbench.checkpoint.dummy import DEVIATION, PERIOD, DummyTensors, dummy_bytes, dummy_fingerprint
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.unified_layout import checkpoint_tensors
from workbench.model.numerics import unpack_int4
from workbench.model.presets import PRESETS, Sizes, resized
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

SMALL = resized(
    PRESETS["internlm-7b"], Sizes(n_layer=2, n_embd=128, n_head=4, inter_size=320, vocab_size=512, n_positions=64)
)
STATIC = SmoothQuant(activation="per_tensor")
RECIPES = {
    "dense": Recipe(dtype="bfloat16"),
    "int8": Recipe(weights=Int8WeightOnly(), keep=()),
    "int4": Recipe(weights=Int4WeightOnly(group_size=64)),
    "static": Recipe(weights=STATIC, kv_cache=Int8KVCache()),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_tensor_is_as_planned(recipe: Recipe) -> None:
    planned = checkpoint_tensors(SMALL, recipe)
    tensors = DummyTensors(planned)
    for name, spec in planned.items():
        tensor = tensors.tensor(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), name
        if tensor.is_floating_point():
            assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_matrix_has_the_same_deviation_in_every_kind(recipe: Recipe) -> None:
    tensors, name = DummyTensors(checkpoint_tensors(SMALL, recipe)), "transformer.layers.1.mlp.proj"
    weight = tensors.tensor(f"{name}.weight")
    integers = unpack_int4(weight) if weight.dtype == torch.uint8 else weight
    if weight.is_floating_point():
        values = weight.float()
    else:
        static = f"{name}.weight_scale" in tensors.places
        scale = tensors.tensor(f"{name}.{'weight_scale' if static else 'per_channel_scale'}").float()
        scale = scale[:, None] if scale.dim() == 1 else scale.repeat_interleave(64, 1)[:, : integers.shape[1]]
        values = integers.float() * scale
        assert scale.unique().numel() > 1
    assert values.std() == pytest.approx(DEVIATION, rel=0.05)
    assert abs(values.mean()) < DEVIATION / 20
    if weight.dtype == torch.int8:
        assert int(weight.min()) >= -127


def test_the_seed_decides_and_every_tensor_is_another() -> None:
    planned = checkpoint_tensors(SMALL, Recipe())
    one, same, other = DummyTensors(planned, 1), DummyTensors(planned, 1), DummyTensors(planned, 2)
    first, second = (f"transformer.layers.{layer}.mlp.proj.weight" for layer in (0, 1))
    assert torch.equal(one.tensor(first), same.tensor(first))
    assert not torch.equal(one.tensor(first), other.tensor(first))
    assert not torch.equal(one.tensor(first), one.tensor(second))


def test_stacked_neighbours_are_a_view_of_the_same_rows() -> None:
    tensors = DummyTensors(checkpoint_tensors(SMALL, Recipe(weights=Int8WeightOnly())))
    names = [f"transformer.layers.1.mlp.{part}.weight" for part in ("fc", "gate")]
    stacked = tensors.stacked(names)
    assert torch.equal(stacked, torch.cat([tensors.tensor(name) for name in names]))
    assert stacked.data_ptr() == tensors.tensor(names[0]).data_ptr()
    scales = [name.replace("weight", "per_channel_scale") for name in names]
    assert torch.equal(tensors.stacked(scales), torch.cat([tensors.tensor(name) for name in scales]))


def test_tensors_that_do_not_touch_are_joined_all_the_same() -> None:
    odd = {name: TensorSpec(torch.float32, (3, 5)) for name in ("a.weight", "b.weight")}
    tensors = DummyTensors(odd)
    assert torch.equal(
        tensors.stacked(["a.weight", "b.weight"]), torch.cat([tensors.tensor("a.weight"), tensors.tensor("b.weight")])
    )


def test_memory_is_that_of_the_largest_tensor_and_a_period() -> None:
    shape = (3, PERIOD // 2)
    planned = {f"{layer}.weight": TensorSpec(torch.int8, shape) for layer in range(9)}
    tensors = DummyTensors(planned)
    longest = 2 * 3 * (PERIOD // 2)
    assert dummy_bytes(planned) == PERIOD + longest
    last = tensors.tensor("8.weight")
    assert last.untyped_storage().nbytes() == PERIOD + longest
    # What lies a period further is the same value.
    assert torch.equal(last.flatten()[:64], last.flatten()[PERIOD : PERIOD + 64])


def test_a_small_model_takes_no_more_than_its_tensors() -> None:
    planned = checkpoint_tensors(SMALL, Recipe())
    assert sum(spec.bytes for spec in planned.values()) <= dummy_bytes(planned) < 2_000_000


def test_the_fingerprint_tells_models_apart() -> None:
    deeper = dataclasses.replace(SMALL, num_layers=3)
    prints = {dummy_fingerprint(SMALL, 0), dummy_fingerprint(SMALL, 1), dummy_fingerprint(deeper, 0)}
    assert len(prints) == 3
    assert dummy_fingerprint(SMALL, 0) in prints
