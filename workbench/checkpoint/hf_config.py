"""An InternLM v1 ``config.json`` <-> :class:`ModelConfig`, field by field. Reads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.checkpoint.json_fields import JsonFields
from workbench.errors import CheckpointError
from workbench.model.config import ModelConfig

ARCHITECTURES = ("InternLMForCausalLM",)
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
# "dynamic" rescales the base beyond max_position_embeddings only; up to there it is plain RoPE.
ROTARY_TYPES = ("origin", "dynamic")


def read_model_config(folder: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face folder.

    A value that v1's own configuration class would fill in (no bias stated, no rotary stated) is filled in alike.

    Raises:
        CheckpointError: the folder or a field is missing, or a field is not what InternLM v1 allows.
    """
    folder = Path(folder)
    fields = _open_config(folder)
    _check_architecture(fields)
    fields.text("hidden_act", "silu", allowed=("silu",))
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if hidden % heads or (hidden // heads) % 2:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size {hidden} that leaves an even head width")
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    bias = fields.boolean("bias", default=True)
    return ModelConfig(
        architecture=ARCHITECTURES[0],
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        norm_epsilon=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(fields),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048),
        qkv_bias=bias,
        output_bias=bias,
        bos_token_id=fields.optional_integer("bos_token_id"),
        pad_token_id=fields.optional_integer("pad_token_id"),
        eos_token_ids=_eos_token_ids(folder, fields),
    )


def ties_embeddings(folder: str | Path) -> bool:
    """Whether the LM head may be absent because it is the embedding table."""
    return _open_config(Path(folder)).boolean("tie_word_embeddings", default=False)


def write_model_config(folder: Path, config: ModelConfig, dtype: str) -> None:
    """Write ``config.json`` in v1's own field names; ``num_key_value_heads``, which v1 lacks, only under GQA."""
    content: dict[str, Any] = {
        "architectures": [config.architecture],
        "bias": config.qkv_bias,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else list(config.eos_token_ids),
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "internlm",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": config.pad_token_id,
        "rms_norm_eps": config.norm_epsilon,
        "rotary": {"base": config.rope_theta, "type": "origin"},
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.num_kv_heads != config.num_heads:
        content["num_key_value_heads"] = config.num_kv_heads
    write_json(folder / CONFIG_FILE, content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with sorted keys, the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _open_config(folder: Path) -> JsonFields:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", fix="give the folder of a Hugging Face checkpoint")
    if not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is empty", fix="give the folder of a Hugging Face checkpoint")
    return JsonFields.read(folder / CONFIG_FILE)


def _check_architecture(fields: JsonFields) -> None:
    stated = fields.content.get("architectures")
    if not isinstance(stated, list) or not stated:
        if "workbench" in fields:
            raise CheckpointError(
                f"{fields.path.parent} is a workbench checkpoint or engine, not a Hugging Face model",
                fix="give the Hugging Face folder that it was converted from",
            )
        raise CheckpointError(f"{fields.path} has no architectures", allowed=f"[{ARCHITECTURES[0]!r}]")
    if stated[0] not in ARCHITECTURES:
        raise CheckpointError(f"{fields.path}: architecture {stated[0]!r} is unknown", allowed=", ".join(ARCHITECTURES))


def _rope_theta(fields: JsonFields) -> float:
    if "rotary" not in fields:
        return fields.positive("rope_theta", 10000.0)
    rotary = fields.section("rotary")
    rotary.text("type", "dynamic", allowed=ROTARY_TYPES)
    return rotary.positive("base", 10000.0)


def _eos_token_ids(folder: Path, fields: JsonFields) -> tuple[int, ...]:
    """Ids of both files: chat models state their end-of-answer id in ``generation_config.json`` only."""
    ids = fields.integers("eos_token_id")
    if (folder / GENERATION_FILE).is_file():
        ids += JsonFields.read(folder / GENERATION_FILE).integers("eos_token_id")
    return tuple(dict.fromkeys(ids))
