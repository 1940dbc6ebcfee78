"""What a quantized or calibrated checkpoint stores: TensorRT-LLM's names, quotients and quant_algo, and ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.checkpoint.breakable import Breakable
from tests.quantization.seen_ranges import ranges_of
from workbench.checkpoint.unified import load_checkpoint, verify_checksum
from workbench.checkpoint.weight_fields import StoredLinear, pack, split_rows, weight_fields
from workbench.errors import CheckpointError
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LinearWeight, SmoothQuantWeight
from workbench.quantization.calibrated import CalibratedOptions, calibrated_ranges, convert_calibrated
from workbench.quantization.convert import convert
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoint_format.md"
STATIC = SmoothQuant(activation="per_tensor")
# InternLM3 is the version that may have a bias everywhere.
MODEL: dict[str, Any] = {"kv_heads": 2, "format": "internlm3", "bias": True}


@pytest.fixture
def made(random_model_dir: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """``made(weights=...)``: tensors and ``config.json`` of such a checkpoint of a small GQA model with every bias."""

    def make(**choices: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        model = random_model_dir(**MODEL)
        convert(model, Recipe(**choices), tmp_path / "out", ranges=ranges_of(model))
        return load_file(tmp_path / "out" / "rank0.safetensors"), json.loads((tmp_path / "out/config.json").read_text())

    return make


@pytest.mark.parametrize(
    ("choices", "algorithm", "cache", "group"),
    [
        ({}, None, None, None),
        ({"weights": Int8WeightOnly()}, "W8A16", None, None),
        ({"weights": Int8WeightOnly(), "kv_cache": Int8KVCache()}, "W8A16", "INT8", None),
        ({"weights": Int4WeightOnly(64)}, "W4A16", None, 64),
        ({"weights": Int4WeightOnly(0)}, "W4A16", None, None),
        ({"weights": SmoothQuant()}, "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", None, None),
        ({"weights": STATIC}, "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN", None, None),
        ({"weights": SmoothQuant("per_tensor")}, "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN", None, None),
        ({"weights": SmoothQuant("per_tensor", "per_tensor")}, "W8A8_SQ_PER_TENSOR_PLUGIN", None, None),
        ({"kv_cache": Int8KVCache("per_tensor")}, None, "INT8", None),
    ],
)
def test_the_config_names_the_algorithm(
    made: Callable[..., Any], choices: dict[str, Any], algorithm: str | None, cache: str | None, group: int | None
) -> None:
    _, config = made(**choices)
    quantization = config["quantization"]
    assert quantization["quant_algo"] == algorithm
    assert quantization["kv_cache_quant_algo"] == cache
    assert quantization["group_size"] == group
    assert quantization["exclude_modules"] == (["lm_head"] if algorithm else [])
    assert config["workbench"]["state"] == ("quantized" if choices else "dense")


ALL_NAMES = [
    {"weights": STATIC, "kv_cache": Int8KVCache(), "keep": ()},
    {"weights": SmoothQuant(), "kv_cache": Int8KVCache("per_tensor")},
    {"weights": Int4WeightOnly(), "keep": ()},
]


@pytest.mark.parametrize("choices", ALL_NAMES)
def test_every_tensor_is_documented(made: Callable[..., Any], choices: dict[str, Any]) -> None:
    page = DOCUMENT.read_text()
    for name in made(**choices)[0]:
        assert f"`{name.replace('layers.0', 'layers.N').replace('layers.1', 'layers.N')}`" in page


def test_every_documented_tensor_exists(made: Callable[..., Any]) -> None:
    lines = [line.split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| `transformer.")]
    rows = [cells[1].strip(" `") for cells in lines if cells[2].strip().startswith("[")]
    assert len(rows) > 30
    tensors, _ = made(**ALL_NAMES[0])
    assert {name.replace("layers.N", "layers.0") for name in rows} <= set(tensors)


def test_static_scales_are_tensorrt_llms_quotients(made: Callable[..., Any]) -> None:
    tensors, _ = made(weights=STATIC, keep=())
    for prefix, factor in (
        ("attention.qkv", "input_layernorm.scale_to_int"),
        ("attention.dense", "attention.quantization_scaling_factor"),
        ("mlp.fc", "post_layernorm.scale_to_int"),
        ("mlp.gate", "post_layernorm.scale_to_int"),
        ("mlp.proj", "mlp.quantization_scaling_factor"),
    ):
        own = {name: tensors[f"transformer.layers.1.{prefix}.{name}"].astype(np.float64) for name in STATIC_FIELDS}
        # (127 / max|Y|) / ((127 / max|X|) * (127 / max|W|))
        quotient = (1 / own["act_scale"]) / ((1 / own["input_scale"]) * (1 / own["weight_scale"]))
        np.testing.assert_allclose(own["per_channel_scale"], quotient, rtol=1e-6)
        np.testing.assert_allclose(tensors[f"transformer.layers.1.{factor}"] * own["input_scale"], 1, rtol=1e-6)
    fc, gate = (tensors[f"transformer.layers.1.mlp.{name}.act_scale"] for name in ("fc", "gate"))
    assert fc != gate  # gate and up have outputs of their own


STATIC_FIELDS = ("act_scale", "input_scale", "weight_scale", "per_channel_scale")


def test_act_scale_is_the_outputs_range(made: Callable[..., Any], random_model_dir: Callable[..., Path]) -> None:
    ranges = ranges_of(random_model_dir(**MODEL))
    tensors, _ = made(weights=SmoothQuant(activation="per_tensor", groups=("qkv",)))
    for site, stored in (("attention.qkv", "attention.qkv"), ("mlp.down", "mlp.proj")):
        expected = ranges.outputs[f"layers.0.{site}"].max() / 127
        assert tensors[f"transformer.layers.0.{stored}.act_scale"] == expected.numpy()


def test_per_token_mode_has_no_static_scales(made: Callable[..., Any]) -> None:
    tensors, _ = made(weights=SmoothQuant())
    assert not [name for name in tensors if name.endswith(("act_scale", "_scale_to_int", "scaling_factor"))]
    assert not [name for name in tensors if name.endswith(("weight_scale", "input_scale"))]


@pytest.mark.parametrize("how", [SmoothQuant(), STATIC])
def test_the_smoother_is_ones(made: Callable[..., Any], how: SmoothQuant) -> None:
    tensors, _ = made(weights=how)
    smoothers = {name: tensor for name, tensor in tensors.items() if name.endswith("smoother")}
    assert {name.split(".", 3)[3] for name in smoothers} == {"attention.dense.smoother", "mlp.proj.smoother"}
    assert all(np.array_equal(tensor, np.ones_like(tensor)) for tensor in smoothers.values())
    assert tensors["transformer.layers.0.mlp.proj.smoother"].shape == (160,)


@pytest.mark.parametrize(("how", "heads"), [(Int8KVCache(), 2), (Int8KVCache("per_tensor"), 1)])
def test_one_kv_factor_covers_all(made: Callable[..., Any], how: Int8KVCache, heads: int) -> None:
    tensors, _ = made(kv_cache=how)
    key, value, factor = (
        tensors[f"transformer.layers.0.attention.{name}"]
        for name in ("k_cache_scale", "v_cache_scale", "kv_cache_scaling_factor")
    )
    assert key.shape == value.shape == (heads,)
    assert factor == max(key.max(), value.max())


# ---- the states


@pytest.fixture
def calibrated(random_model_dir: Callable[..., Path], tmp_path: Path) -> Breakable:
    model = random_model_dir(**MODEL)
    smoothing = SmoothQuant(alpha=0.5, alpha_by_group={"layers.1.down": 0.75})
    convert_calibrated(model, tmp_path / "calibrated", ranges_of(model), CalibratedOptions("float16", smoothing))
    return Breakable(tmp_path / "calibrated", "rank0.safetensors")


def test_a_calibrated_checkpoint_says_so(calibrated: Breakable) -> None:
    config = json.loads((calibrated.folder / "config.json").read_text())
    assert config["workbench"]["state"] == "calibrated"
    assert config["workbench"]["smoothing"] == {
        "alpha": 0.5,
        "groups": ["qkv", "o", "gate_up", "down"],
        "alpha_by_group": {"layers.1.down": 0.75},
    }
    checkpoint = load_checkpoint(calibrated.folder)
    assert checkpoint.state == "calibrated"
    assert checkpoint.smoothing == SmoothQuant(alpha=0.5, alpha_by_group={"layers.1.down": 0.75})
    assert isinstance(checkpoint.weights.layers[0].qkv, DenseWeight)
    assert sorted(path.name for path in calibrated.folder.iterdir()) == [
        "config.json",
        "ranges.safetensors",
        "rank0.safetensors",
    ]


def test_an_illegal_smoothing(calibrated: Breakable) -> None:
    ours = json.loads((calibrated.folder / "config.json").read_text())["workbench"]
    calibrated.edit_config(workbench=ours | {"smoothing": {"alpha": 2.0}})
    with pytest.raises(CheckpointError, match=r"config\.json: workbench\.smoothing: weights\.alpha is 2\.0"):
        load_checkpoint(calibrated.folder)


def test_verify_sees_changed_ranges(calibrated: Breakable) -> None:
    verify_checksum(calibrated.folder)
    path = calibrated.folder / "ranges.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ranges\.safetensors has checksum"):
        verify_checksum(calibrated.folder)


def test_ranges_that_went_missing(calibrated: Breakable) -> None:
    (calibrated.folder / "ranges.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ranges\.safetensors is missing"):
        calibrated_ranges(load_checkpoint(calibrated.folder))


def test_a_checkpoint_from_before_smoothing_is_read(checkpoint: Breakable) -> None:
    ours = json.loads((checkpoint.folder / "config.json").read_text())["workbench"]
    checkpoint.edit_config(workbench={key: value for key, value in ours.items() if key not in NEWER})
    loaded = load_checkpoint(checkpoint.folder)
    assert loaded.smoothing is None
    assert loaded.state == "quantized"


NEWER = ("smoothing", "ranges_checksum")


# ---- packing one layer


WEIGHTS: list[tuple[Any, LinearWeight]] = [
    (None, DenseWeight(torch.randn(4, 6), torch.randn(4))),
    (Int8WeightOnly(), Int8Weight(torch.ones(4, 6, dtype=torch.int8), torch.rand(4))),
    (Int4WeightOnly(32), Int4GroupWeight(torch.ones(4, 3, dtype=torch.uint8), torch.rand(4, 1).half(), 6)),
    (SmoothQuant(), SmoothQuantWeight(torch.ones(4, 6, dtype=torch.int8), torch.rand(4), torch.randn(4))),
    (STATIC, SmoothQuantWeight(torch.ones(4, 6, dtype=torch.int8), torch.rand(4), None, torch.tensor(0.5))),
]


@pytest.mark.parametrize(("how", "weight"), WEIGHTS)
@pytest.mark.parametrize("smoother", [False, True])
def test_pack_writes_what_weight_fields_announces(how: Any, weight: LinearWeight, smoother: bool) -> None:
    stored = StoredLinear((4, 6), torch.float32, bias=weight.bias is not None, smoother=smoother)
    packed = pack(weight, torch.rand(4), smoother=smoother)
    announced = weight_fields(how, stored)
    assert set(packed) == set(announced)
    for name, spec in announced.items():
        assert (packed[name].dtype, tuple(packed[name].shape)) == (spec.dtype, spec.shape)


@pytest.mark.parametrize("weight", [weight for _, weight in WEIGHTS])
def test_rows_are_split_without_a_copy(weight: LinearWeight) -> None:
    first, second = split_rows(weight, 2)
    assert type(first) is type(weight)
    assert first.weight.data_ptr() == weight.weight.data_ptr()
    assert torch.equal(torch.cat([first.weight, second.weight]), weight.weight)
    if weight.bias is not None:
        assert second.bias is not None
        assert torch.equal(second.bias, weight.bias[2:])


def test_static_scales_need_the_outputs_range() -> None:
    with pytest.raises(TypeError, match="is stored with the range of its output"):
        pack(WEIGHTS[-1][1])
