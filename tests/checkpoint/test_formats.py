"""One random model in every version's format: the same weights for us, the same logits as in transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tolerances import TOLERANCE, relative_l2
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.hf_names import FORMATS
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.model.config import ModelConfig
from workbench.runtime.session import SessionOptions, TorchSession

SIZES = {"hidden": 48, "heads": 12, "intermediate": 40, "max_positions": 64}
# kv_heads: 12, 4, 3 query heads for each key/value head, and one.
KV_HEADS = (1, 3, 4, 12)
# Stated here once more, by hand, for transformers' side.
INTERNLM2 = {
    "model.tok_embeddings": "model.embed_tokens",
    "attention_norm": "input_layernorm",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "output": "lm_head",
}


def _llama_state(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """What the files hold, under Llama's names, read by the library and mapped without any of our code."""
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "wqkv" in name:
            groups = config.num_heads // config.num_kv_heads
            heads = tensor.unflatten(0, (config.num_kv_heads, groups + 2, config.head_dim))
            parts = {"q": heads[:, :groups], "k": heads[:, groups], "v": heads[:, groups + 1]}
            for part, rows in parts.items():
                new = name.replace("attention.wqkv", f"self_attn.{part}_proj")
                state[new] = rows.reshape(-1, *tensor.shape[1:])
        else:
            renamed = name
            for old, new in INTERNLM2.items():
                renamed = renamed.replace(f"{old}.", f"{new}.") if f"{old}." in name else renamed
            state[renamed] = tensor
    return state


def _llama(config: ModelConfig, state: dict[str, Tensor]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    llama_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rms_norm_eps=config.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_position_embeddings,
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        tie_word_embeddings="lm_head.weight" not in state,
    )
    model = LlamaForCausalLM(llama_config)
    lost = model.load_state_dict(state, strict=False)
    assert not lost.unexpected_keys
    assert lost.missing_keys == (["lm_head.weight"] if llama_config.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_transformers(
    random_model_dir: Callable[..., Path], name: str, bias: bool, kv_heads: int
) -> None:
    folder = random_model_dir(format=name, bias=bias, kv_heads=kv_heads, **SIZES)
    source = HFCheckpoint.open(folder)
    ids = torch.randint(3, 97, (2, 24), generator=torch.Generator().manual_seed(5))
    session = TorchSession(source.config, source.weights(torch.float32), SessionOptions(torch.float32))
    with torch.no_grad():
        expected = _llama(source.config, _llama_state(folder, source.config))(ids).logits
    assert relative_l2(session.logits(ids), expected) < TOLERANCE[torch.float32]["model"]


def test_a_tied_head(random_model_dir: Callable[..., Path]) -> None:
    for name in ("llama", "internlm2"):
        folder = random_model_dir(format=name, tied=True, kv_heads=4, **SIZES)
        source = HFCheckpoint.open(folder)
        ids = torch.arange(3, 19).view(1, 16)
        session = TorchSession(source.config, source.weights(torch.float32), SessionOptions(torch.float32))
        with torch.no_grad():
            expected = _llama(source.config, _llama_state(folder, source.config))(ids).logits
        assert relative_l2(session.logits(ids), expected) < TOLERANCE[torch.float32]["model"]
        assert torch.equal(source.tensor(hf_names.LM_HEAD), source.tensor(hf_names.EMBEDDING))


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_seed_is_the_same_model_in_every_format(random_model_dir: Callable[..., Path], bias: bool) -> None:
    first, *others = (HFCheckpoint.open(random_model_dir(format=name, bias=bias, kv_heads=2)) for name in FORMATS)
    assert first.config.architecture == "InternLMForCausalLM"
    for other in others:
        assert set(hf_names.tensor_shapes(first.config)) <= set(hf_names.tensor_shapes(other.config))
        for name in hf_names.tensor_shapes(first.config):
            assert torch.equal(first.tensor(name), other.tensor(name))


def test_rows_are_those_of_the_tensor(random_model_dir: Callable[..., Path]) -> None:
    """Whatever the step, and wherever the file has q, k and v fused."""
    source = HFCheckpoint.open(random_model_dir(format="internlm2", bias=True, kv_heads=2))
    for name in hf_names.tensor_shapes(source.config):
        rows = list(source.rows(name, 7))
        assert max(len(part) for part in rows) <= 7
        assert torch.equal(torch.cat(rows), source.tensor(name))
        assert source.spec(name).shape == source.tensor(name).shape


def test_messages_name_what_the_file_has(random_model_dir: Callable[..., Path]) -> None:
    folder = random_model_dir(format="internlm2", kv_heads=2)
    told = HFCheckpoint.open(folder).describe(f"model.layers.0.{hf_names.K}.weight")
    assert told == f"{folder / 'model.safetensors'}: tensor 'model.layers.0.attention.wqkv.weight'"
