"""What a build is said to need."""

from __future__ import annotations

import pytest

from workbench.engine.needs import BUILDER_BYTES, build_needs
from workbench.model.config import ModelConfig
from workbench.recipe import Int8WeightOnly, Recipe

CONFIG = ModelConfig(
    architecture="InternLMForCausalLM",
    vocab_size=10,
    hidden_size=8,
    intermediate_size=16,
    num_layers=4,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    norm_epsilon=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=16,
    qkv_bias=True,
    output_bias=True,
    bos_token_id=1,
    pad_token_id=0,
    eos_token_ids=(2,),
)
# Four projections of 8 x 8 with biases, three of the MLP, two norms.
LAYER = 4 * (64 + 8) + 3 * 8 * 16 + 2 * 8
ENDS = 2 * 10 * 8 + 8


def test_weights_are_counted_as_they_are_stored() -> None:
    dense = build_needs(CONFIG, Recipe(dtype="float16"), "off", with_checkpoint=False)
    assert dense.disk_bytes == 2 * (4 * LAYER + ENDS)
    assert dense.memory_bytes == dense.builder_bytes == BUILDER_BYTES + 3 * dense.disk_bytes
    quantized = build_needs(CONFIG, Recipe(dtype="float16", weights=Int8WeightOnly()), "off", with_checkpoint=True)
    assert dense.disk_bytes < quantized.disk_bytes < 2 * dense.disk_bytes
    assert quantized.builder_bytes < dense.builder_bytes


@pytest.mark.parametrize(("verify", "layers"), [("full", 4), ("sample", 3)])
def test_the_check_computes_with_every_value_of_its_layers(verify: str, layers: int) -> None:
    for recipe in (Recipe(), Recipe(weights=Int8WeightOnly())):
        needs = build_needs(CONFIG, recipe, verify, with_checkpoint=False)
        assert needs.check_bytes == 16 * (layers * LAYER + ENDS)
        assert needs.memory_bytes == needs.builder_bytes + needs.check_bytes
