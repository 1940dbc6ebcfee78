"""InternLM v1's config, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.checkpoint.hf_config import read_model_config, ties_embeddings, write_model_config
from workbench.checkpoint.random_model import RandomModelSpec
from workbench.errors import CheckpointError

# The fields of the published internlm-7b.
INTERNLM_7B: dict[str, Any] = {
    "architectures": ["InternLMForCausalLM"],
    "bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "model_type": "internlm",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "vocab_size": 103168,
}


def _folder(tmp_path: Path, **changes: Any) -> Path:
    content = {key: value for key, value in (INTERNLM_7B | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


def test_internlm_7b(tmp_path: Path) -> None:
    config = read_model_config(_folder(tmp_path))
    assert (config.num_kv_heads, config.head_dim, config.qkv_features) == (32, 128, 12288)
    assert (config.rope_theta, config.norm_epsilon) == (10000.0, 1e-6)
    assert config.qkv_bias
    assert config.output_bias
    assert config.eos_token_ids == (2,)


def test_rotary_is_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path, rotary={"base": 1000000, "type": "dynamic"})
    assert read_model_config(folder).rope_theta == 1e6


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e5, "original_max_position_embeddings": 2048}},
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rotary": {"type": "origin", "base": 500000}, "partial_rotary_factor": 1.0},
    ],
    ids=str,
)
def test_plain_rope_however_it_is_stated(tmp_path: Path, rope: dict[str, Any]) -> None:
    expected = 5e5 if "500000" in str(rope) else 1e4
    assert read_model_config(_folder(tmp_path, **rope)).rope_theta == expected


def test_a_head_may_be_wider_than_its_share(tmp_path: Path) -> None:
    config = read_model_config(_folder(tmp_path, head_dim=256, hidden_size=4098))
    assert (config.head_dim, config.qkv_features) == (256, 3 * 32 * 256)
    write_model_config(tmp_path, config, "float16")
    assert read_model_config(tmp_path) == config
    assert read_model_config(_folder(tmp_path, head_dim=None)).head_dim == 128


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id"])
@pytest.mark.parametrize("stated", [-1, None, ...])
def test_no_such_token(tmp_path: Path, name: str, stated: Any) -> None:
    assert getattr(read_model_config(_folder(tmp_path, **{name: stated})), name) is None


def test_attention_bias_is_llamas_name_for_bias(tmp_path: Path) -> None:
    assert not read_model_config(_folder(tmp_path, bias=..., attention_bias=False)).qkv_bias
    assert read_model_config(_folder(tmp_path, attention_bias=True)).output_bias


@pytest.mark.parametrize(("stated", "expected"), [(False, False), (True, True), (..., True)])
def test_bias_is_on_unless_switched_off(tmp_path: Path, stated: Any, expected: bool) -> None:
    config = read_model_config(_folder(tmp_path, bias=stated))
    assert (config.qkv_bias, config.output_bias) == (expected, expected)


def test_eos_ids_of_both_files(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 103028]}')
    assert read_model_config(_folder(tmp_path)).eos_token_ids == (2, 103028)


def test_tied_embeddings(tmp_path: Path) -> None:
    assert not ties_embeddings(_folder(tmp_path))
    assert ties_embeddings(_folder(tmp_path, tie_word_embeddings=True))


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_a_written_config_reads_back(tmp_path: Path, kv_heads: int | None) -> None:
    config = RandomModelSpec(kv_heads=kv_heads, bias=False).config
    write_model_config(tmp_path, config, "float16")
    assert read_model_config(tmp_path) == config
    assert ("num_key_value_heads" in (tmp_path / "config.json").read_text()) == (kv_heads is not None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ...}, "config.json has no architectures; allowed: ['InternLMForCausalLM']"),
        ({"architectures": []}, "has no architectures"),
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel' is unknown; allowed: InternLMForC"),
        ({"hidden_size": ...}, "config.json: hidden_size is nothing; allowed: a whole number from 1"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"num_attention_heads": 33}, "num_attention_heads is 33; allowed: a divisor of hidden_size 4096"),
        ({"hidden_size": 96, "num_attention_heads": 32}, "that leaves an even head width"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5; allowed: a divisor of num_attention_heads 32"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed: 'silu'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; allowed: a number above 0"),
        ({"bias": 1}, "bias is 1; allowed: true or false"),
        ({"rotary": {"type": "yarn"}}, "rotary.type is 'yarn'; allowed: 'origin' or 'dynamic'"),
        ({"rotary": {"type": "origin", "base": -1}}, "rotary.base is -1"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_scaling.type is 'linear'; allowed: 'default' or 'dynamic'",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type is 'yarn'; allowed: 'default' or 'dynamic'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.rope_type is 'llama3'; allowed: 'default' or"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta is 0; allowed: a number above 0"),
        (
            {"rope_scaling": {"type": "dynamic", "original_max_position_embeddings": 1024}},
            "rope_scaling.original_max_position_embeddings is 1024; allowed: 2048, or nothing",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor is 0.5; allowed: 1.0, or nothing",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; allowed: an object"),
        (
            {"rope_theta": 1e6, "rotary": {"type": "origin", "base": 10000}},
            "rotary.base is 10000, rope_theta is 1e+06; allowed: one base of RoPE",
        ),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25; allowed: 1.0, or nothing"),
        ({"head_dim": 63}, "head_dim is 63; allowed: an even number"),
        ({"mlp_bias": True}, "mlp_bias is True; allowed: false, or nothing"),
        ({"attention_bias": False}, "attention_bias is False; allowed: true, as bias is"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is {'quant_method': 'fp8'}; allowed: "),
        ({"pad_token_id": -2}, "pad_token_id is -2; allowed: a whole number from 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ],
)
def test_wrong_fields(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_model_config(_folder(tmp_path, **changes))
    assert message in str(error.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder; give the folder of a Hugging Face checkpoint"):
        read_model_config(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is empty; give the folder of a Hugging Face checkpoint"):
        read_model_config(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_model_config(tmp_path)


def test_our_own_checkpoint_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="is a workbench checkpoint or engine, not a Hugging Face model; give the"
    ):
        read_model_config(_folder(tmp_path, architectures=..., workbench={"kind": "checkpoint"}))
