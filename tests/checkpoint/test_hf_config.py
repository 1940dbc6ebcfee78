"""The config of every version, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.checkpoint.hf_config import read_model_config, ties_embeddings, write_model_config
from workbench.checkpoint.random_model import RandomModelSpec
from workbench.errors import CheckpointError
from workbench.model.config import ModelConfig, RopeScaling

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


# The fields of the published internlm2-chat-7b, internlm3-8b-instruct and a Llama 3; not those for training alone.
INTERNLM2_7B: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "eager",
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "internlm2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 92544,
}
INTERNLM3_8B: dict[str, Any] = {
    "architectures": ["InternLM3ForCausalLM"],
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10240,
    "max_position_embeddings": 32768,
    "model_type": "internlm3",
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "qkv_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
    "rope_theta": 50000000,
    "tie_word_embeddings": False,
    "vocab_size": 128512,
}
LLAMA_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
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


def _read(tmp_path: Path, published: dict[str, Any], **changes: Any) -> ModelConfig:
    content = {key: value for key, value in (published | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_model_config(tmp_path)


def test_internlm2_7b(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 92542], "pad_token_id": 2}')
    config = _read(tmp_path, INTERNLM2_7B)
    assert (config.architecture, config.num_kv_heads, config.head_dim) == ("InternLM2ForCausalLM", 8, 128)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (False, False, False)
    assert (config.rope_theta, config.rope_scaling) == (1e6, RopeScaling("dynamic", 2.0))
    assert config.eos_token_ids == (2, 92542)


def test_internlm3_8b(tmp_path: Path) -> None:
    config = _read(tmp_path, INTERNLM3_8B)
    assert (config.architecture, config.num_kv_heads, config.qkv_features) == ("InternLM3ForCausalLM", 2, 36 * 128)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (False, False, False)
    assert (config.rope_theta, config.rope_scaling) == (5e7, RopeScaling("dynamic", 6.0))


def test_llama_1b(tmp_path: Path) -> None:
    config = _read(tmp_path, LLAMA_1B)
    assert (config.architecture, config.num_kv_heads, config.head_dim) == ("LlamaForCausalLM", 8, 64)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (False, False, False)
    assert config.eos_token_ids == (128001, 128009)
    assert ties_embeddings(tmp_path)


@pytest.mark.parametrize(
    ("published", "changes", "expected"),
    [
        (INTERNLM2_7B, {"bias": ...}, (True, True, False)),
        (INTERNLM2_7B, {"bias": True}, (True, True, False)),
        (INTERNLM3_8B, {"bias": ..., "qkv_bias": ...}, (False, False, False)),
        (INTERNLM3_8B, {"qkv_bias": True}, (True, False, False)),
        (INTERNLM3_8B, {"bias": True}, (False, True, True)),
        (LLAMA_1B, {"attention_bias": ..., "mlp_bias": ...}, (False, False, False)),
        (LLAMA_1B, {"attention_bias": True}, (True, True, False)),
        (LLAMA_1B, {"mlp_bias": True}, (False, False, True)),
    ],
    ids=str,
)
def test_biases_are_each_versions_own(
    tmp_path: Path, published: dict[str, Any], changes: dict[str, Any], expected: tuple[bool, bool, bool]
) -> None:
    config = _read(tmp_path, published, **changes)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == expected
    write_model_config(tmp_path, config, "float16")
    assert read_model_config(tmp_path) == config


@pytest.mark.parametrize(
    ("published", "changes", "message"),
    [
        (INTERNLM2_7B, {"mlp_bias": True}, "mlp_bias is True; allowed: false, or nothing"),
        (INTERNLM2_7B, {"qkv_bias": True}, "qkv_bias is True; allowed: false, or nothing"),
        (INTERNLM3_8B, {"attention_bias": True}, "attention_bias is True; allowed: false, or nothing"),
        (INTERNLM3_8B, {"mlp_bias": True}, "mlp_bias is True; allowed: false, or nothing"),
        (LLAMA_1B, {"bias": True}, "attention_bias is False; allowed: true, as bias is"),
    ],
)
def test_biases_that_a_version_does_not_have(
    tmp_path: Path, published: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        _read(tmp_path, published, **changes)


def test_positions_that_are_not_stated(tmp_path: Path) -> None:
    for published, expected in ((INTERNLM_7B, 2048), (INTERNLM2_7B, 2048), (INTERNLM3_8B, 32768), (LLAMA_1B, 2048)):
        assert _read(tmp_path, published, max_position_embeddings=...).max_position_embeddings == expected


def test_rotary_is_read_and_written(tmp_path: Path) -> None:
    config = read_model_config(_folder(tmp_path, rotary={"base": 1000000, "type": "dynamic"}))
    assert (config.rope_theta, config.rope_scaling) == (1e6, RopeScaling("dynamic", 1.0))
    write_model_config(tmp_path, config, "float16")
    assert read_model_config(tmp_path) == config


def test_contradicting_rope_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rope_scaling\.original_max_position_embeddings is 1024; allowed: 2048"):
        read_model_config(_folder(tmp_path, rope_scaling={"type": "default", "original_max_position_embeddings": 1024}))


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


def test_ids_beyond_the_vocabulary_are_refused_in_either_file(tmp_path: Path) -> None:
    allowed = r"allowed: ids of the vocabulary, 0 to 103167"
    with pytest.raises(CheckpointError, match=rf"config\.json: eos_token_id is \[2, 103168\]; {allowed}"):
        read_model_config(_folder(tmp_path, eos_token_id=[2, 103168]))
    for name in ("bos_token_id", "pad_token_id"):
        with pytest.raises(CheckpointError, match=rf"{name} is 103168; allowed: an id of the vocabulary, 0 to 103167"):
            read_model_config(_folder(tmp_path, **{name: 103168}))
        assert getattr(read_model_config(_folder(tmp_path, **{name: 103167})), name) == 103167
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [103167, -1, 128131]}')
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: eos_token_id is .*128131\]; {allowed}"):
        read_model_config(_folder(tmp_path))


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
        ({"architectures": ...}, "config.json has no architectures; allowed: one of InternLMForCausalLM, InternLM2F"),
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
    with pytest.raises(CheckpointError, match="nowhere does not exist; give the folder of a Hugging Face checkpoint"):
        read_model_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is a file; give the folder of a Hugging Face checkpoint"):
        read_model_config(tmp_path / "config.json")


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
