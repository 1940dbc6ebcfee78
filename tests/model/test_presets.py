"""Published sizes, and what becomes of them when some are changed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from workbench.checkpoint.hf_names import tensor_shapes
from workbench.errors import WorkbenchError
from workbench.model.presets import PRESETS, Sizes, preset, resized


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        # Counted by hand from the published tables: 2 V d + L (2 d (d + d_kv) + 3 d i + 2 d + biases) + d.
        ("internlm-7b", 7.32),
        ("internlm-20b", 20.09),
        ("internlm2-1.8b", 1.89),
        ("internlm2-7b", 7.74),
        ("internlm2-20b", 19.86),
        ("internlm3-8b", 8.80),
    ],
)
def test_a_preset_has_as_many_parameters_as_was_published(name: str, billions: float) -> None:
    parameters = sum(math.prod(shape) for shape in tensor_shapes(preset(name)).values())
    assert parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_every_preset_divides_into_heads() -> None:
    for config in PRESETS.values():
        assert config.head_dim == 128
        assert config.num_heads % config.num_kv_heads == 0
        assert max(config.eos_token_ids) < config.vocab_size


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(WorkbenchError, match=r"preset 'internlm-8b'; allowed: internlm-7b, .*did you mean 'internlm"):
        preset("internlm-8b")


def test_what_is_not_changed_stays() -> None:
    base = PRESETS["internlm3-8b"]
    assert resized(base, Sizes()) == base
    changed = resized(base, Sizes(n_layer=2, rotary_base=500.0))
    assert (changed.num_layers, changed.rope_theta) == (2, 500.0)
    assert (changed.num_kv_heads, changed.intermediate_size, changed.head_dim) == (2, 10240, 128)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # As the original's build.py: 8/3 of the width in steps of 256, and key/value heads for each query head.
        ({"n_embd": 5120, "n_head": 40}, {"intermediate_size": 13824, "num_kv_heads": 40, "head_dim": 128}),
        ({"n_embd": 64, "n_head": 4, "inter_size": 160}, {"intermediate_size": 160, "head_dim": 16}),
        ({"n_head": 16, "n_kv_head": 4}, {"num_kv_heads": 4, "head_dim": 256, "intermediate_size": 11008}),
        ({"vocab_size": 97}, {"eos_token_ids": (2, 96), "bos_token_id": 1, "pad_token_id": 2}),
        ({"vocab_size": 2}, {"eos_token_ids": (1,), "bos_token_id": 1, "pad_token_id": 1}),
        ({"n_positions": 64, "rms_norm_eps": 1e-3}, {"max_position_embeddings": 64, "norm_epsilon": 1e-3}),
    ],
)
def test_what_follows_from_a_size_follows(sizes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = resized(PRESETS["internlm-7b"], Sizes(**sizes))
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_head": 5}, r"n_head 5 for n_embd 4096; allowed: divisors that leave an even head width; give --n_head"),
        ({"n_embd": 12, "n_head": 4}, "n_head 4 for n_embd 12"),
        ({"n_kv_head": 3}, "n_kv_head 3 for n_head 32; allowed: divisors of 32"),
        ({"n_layer": 0}, "n_layer is 0; allowed: numbers above 0"),
        ({"rotary_base": math.inf}, "rotary_base is inf"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ],
)
def test_sizes_that_make_no_model(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        resized(PRESETS["internlm-7b"], Sizes(**sizes))
