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
ROPE_TYPES = ("default", "dynamic")
# Where later configurations than v1's state their RoPE; "type" is the older spelling of "rope_type".
ROPE_SECTIONS = ("rope_parameters", "rope_scaling")
# Fields of other Llamas that would change what the model computes, and the one value that changes nothing.
NEUTRAL_FIELDS: dict[str, Any] = {"mlp_bias": False, "partial_rotary_factor": 1.0, "quantization_config": None}


def read_model_config(folder: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face folder.

    A value that v1's own configuration class would fill in (no bias stated, no rotary stated) is filled in alike. RoPE
    and the width of a head may also be stated as in later Llamas' configs. Any stated field that would change what
    the model computes is followed or refused.

    Raises:
        CheckpointError: the folder or a field is missing, or a field is not what is supported.
    """
    folder = Path(folder)
    fields = _open_config(folder)
    _check_architecture(fields)
    fields.text("hidden_act", "silu", allowed=("silu",))
    _check_neutral(fields, NEUTRAL_FIELDS)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    bias = _bias(fields)
    return ModelConfig(
        architecture=ARCHITECTURES[0],
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(fields, hidden, heads),
        norm_epsilon=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(fields),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048),
        qkv_bias=bias,
        output_bias=bias,
        bos_token_id=_token_id(fields, "bos_token_id"),
        pad_token_id=_token_id(fields, "pad_token_id"),
        eos_token_ids=_eos_token_ids(folder, fields),
    )


def ties_embeddings(folder: str | Path) -> bool:
    """Whether the LM head may be absent because it is the embedding table."""
    return _open_config(Path(folder)).boolean("tie_word_embeddings", default=False)


def write_model_config(folder: Path, config: ModelConfig, dtype: str) -> None:
    """Write ``config.json`` in v1's own field names; fields that v1 lacks only where the shape needs them."""
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
    if config.head_dim * config.num_heads != config.hidden_size:
        content["head_dim"] = config.head_dim
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


def _check_neutral(fields: JsonFields, neutral: dict[str, Any]) -> None:
    for name, value in neutral.items():
        if name in fields and fields.content[name] != value:
            raise fields.wrong(name, "nothing" if value is None else f"{json.dumps(value)}, or nothing")


def _bias(fields: JsonFields) -> bool:
    """Whether q, k, v and o carry a bias; ``attention_bias`` is Llama's name for v1's ``bias``."""
    if "bias" not in fields:
        return fields.boolean("attention_bias", default=True)
    bias = fields.boolean("bias")
    if fields.boolean("attention_bias", default=bias) != bias:
        raise fields.wrong("attention_bias", f"{json.dumps(bias)}, as bias is")
    return bias


def _head_dim(fields: JsonFields, hidden: int, heads: int) -> int:
    if "head_dim" in fields:
        head_dim = fields.integer("head_dim")
        if head_dim % 2:
            raise fields.wrong("head_dim", "an even number")
        return head_dim
    if hidden % heads or (hidden // heads) % 2:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size {hidden} that leaves an even head width")
    return hidden // heads


def _rope_theta(fields: JsonFields) -> float:
    """The base of plain RoPE, wherever it is stated; every other kind of RoPE is refused."""
    stated: dict[str, float] = {}
    if "rotary" in fields:
        rotary = fields.section("rotary")
        rotary.text("type", "dynamic", allowed=ROTARY_TYPES)
        stated["rotary.base"] = rotary.positive("base", 10000.0)
    for name in ROPE_SECTIONS:
        if name in fields:
            rope = fields.section(name)
            _check_plain(rope, fields.integer("max_position_embeddings", 2048))
            if "rope_theta" in rope:
                stated[f"{name}.rope_theta"] = rope.positive("rope_theta")
    if "rope_theta" in fields:
        stated["rope_theta"] = fields.positive("rope_theta")
    if len(set(stated.values())) > 1:
        said = ", ".join(f"{name} is {value:g}" for name, value in stated.items())
        raise CheckpointError(f"{fields.path}: {said}", allowed="one base of RoPE")
    return next(iter(stated.values()), 10000.0)


def _check_plain(rope: JsonFields, positions: int) -> None:
    for name in ("rope_type", "type"):
        rope.text(name, "default", allowed=ROPE_TYPES)
    _check_neutral(rope, {"partial_rotary_factor": 1.0, "original_max_position_embeddings": positions})


def _token_id(fields: JsonFields, name: str) -> int | None:
    """An id from 0; None where there is none, for which some configs write -1."""
    return None if fields.content.get(name) == -1 else fields.optional_integer(name)


def _eos_token_ids(folder: Path, fields: JsonFields) -> tuple[int, ...]:
    """Ids of both files: chat models state their end-of-answer id in ``generation_config.json`` only."""
    ids = fields.integers("eos_token_id")
    if (folder / GENERATION_FILE).is_file():
        ids += JsonFields.read(folder / GENERATION_FILE).integers("eos_token_id")
    return tuple(dict.fromkeys(ids))
