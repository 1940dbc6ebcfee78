"""Every version's tensor names and shapes."""

from __future__ import annotations

import pytest

from workbench.checkpoint import hf_names
from workbench.checkpoint.hf_names import FORMATS, StoredPlace, stored_parts, stored_place, stored_shapes, tensor_shapes
from workbench.checkpoint.random_model import RandomModelSpec

SIZES = {"layers": 2, "hidden": 16, "heads": 4, "kv_heads": 2, "intermediate": 24, "vocab": 31}


def test_internlm2_as_it_is_published() -> None:
    shapes = stored_shapes(RandomModelSpec(format="internlm2", **SIZES).config)
    layer = "model.layers.1."
    assert list(shapes)[:2] == ["model.tok_embeddings.weight", "model.layers.0.attention_norm.weight"]
    assert {name.removeprefix(layer): shape for name, shape in shapes.items() if name.startswith(layer)} == {
        "attention_norm.weight": (16,),
        "attention.wqkv.weight": (32, 16),
        "attention.wo.weight": (16, 16),
        "ffn_norm.weight": (16,),
        "feed_forward.w1.weight": (24, 16),
        "feed_forward.w2.weight": (16, 24),
        "feed_forward.w3.weight": (24, 16),
    }
    assert list(shapes)[-2:] == ["model.norm.weight", "output.weight"]


@pytest.mark.parametrize("name", ["internlm", "internlm3", "llama"])
def test_the_others_are_stored_under_llamas_names(name: str) -> None:
    config = RandomModelSpec(format=name, **SIZES).config
    assert stored_shapes(config) == tensor_shapes(config)
    assert f"model.layers.0.{hf_names.K}.weight" in stored_shapes(config)


def test_biases_follow_the_version() -> None:
    def biased(name: str) -> set[str]:
        shapes = stored_shapes(RandomModelSpec(format=name, bias=True, **SIZES).config)
        return {key.split(".", 3)[3].removesuffix(".bias") for key in shapes if key.endswith(".bias")}

    attention = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
    assert biased("internlm") == biased("llama") == attention
    assert biased("internlm2") == {"attention.wqkv", "attention.wo"}
    assert biased("internlm3") == attention | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


@pytest.mark.parametrize("name", FORMATS)
def test_places_and_parts_are_inverse(name: str) -> None:
    config = RandomModelSpec(format=name, bias=True, **SIZES).config
    parts = stored_parts(config)
    assert list(parts) == list(stored_shapes(config))
    assert sorted(part for stored in parts.values() for part in stored) == sorted(tensor_shapes(config))
    assert all(stored_place(config, part).name == stored for stored in parts for part in parts[stored])


def test_a_fused_tensor_is_named_with_its_part() -> None:
    config = RandomModelSpec(format="internlm2", **SIZES).config
    place = stored_place(config, f"model.layers.12.{hf_names.V}.bias")
    assert place == StoredPlace("model.layers.12.attention.wqkv.bias", hf_names.V)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.self_attn.rotary_emb.inv_freq", True),
        ("model.layers.3.attention.rotary_emb.inv_freq", True),
        ("model.layers.3.self_attn.rotary_emb.cos_cached", True),
        ("model.inv_freq.weight", False),
    ],
)
def test_rotary_buffers(name: str, expected: bool) -> None:
    assert hf_names.is_rotary_buffer(name) is expected
