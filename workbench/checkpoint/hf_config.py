"""A ``config.json`` of any InternLM or of plain Llama <-> :class:`ModelConfig`, field by field. Reads no weights.

The versions share most fields. What differs is which projections a field gives a bias, and what is filled in where a
field is not stated: that is as in each version's own configuration class.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoint.hf_names import INTERNLM, INTERNLM3, LLAMA, TABLES, NameTable, name_table
from workbench.checkpoint.hf_rope import read_rope, rope_fields, rotary_fields
from workbench.checkpoint.json_fields import JsonFields
from workbench.errors import CheckpointError, no_folder
from workbench.model.config import ModelConfig

ARCHITECTURES = tuple(TABLES)
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
# Fields of other Llamas that would change what the model computes, and the one value that changes nothing.
NEUTRAL_FIELDS: dict[str, Any] = {"partial_rotary_factor": 1.0, "quantization_config": None}
# Every layer has a dozen tensors: more layers than this is a mistake, and would only fill the memory with names.
MAX_LAYERS = 10_000
# A table of RoPE has a row for each position; the longest published models have four million.
MAX_POSITIONS = 10_000_000
_POSITIONS, _POSITIONS_3 = 2048, 32768


@dataclass(frozen=True)
class _Biases:
    """Which linear layers carry a bias: q, k and v; o; gate, up and down."""

    qkv: bool
    output: bool
    mlp: bool


def read_model_config(folder: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face folder.

    RoPE and the width of a head may be stated in the way of any version. Any stated field that would change what the
    model computes is followed or refused.

    Raises:
        CheckpointError: the folder or a field is missing, or a field is not what is supported.
    """
    folder = Path(folder)
    fields = _open_config(folder)
    table = _table(fields)
    fields.text("hidden_act", "silu", allowed=("silu",))
    _check_neutral(fields, NEUTRAL_FIELDS)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    unstated = _POSITIONS_3 if table is INTERNLM3 else _POSITIONS
    positions = fields.integer("max_position_embeddings", unstated, maximum=MAX_POSITIONS)
    rope_theta, rope_scaling = read_rope(fields, positions)
    biases = _biases(fields, table)
    vocab_size = fields.integer("vocab_size")
    return ModelConfig(
        architecture=table.architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers", maximum=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(fields, hidden, heads),
        norm_epsilon=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        max_position_embeddings=positions,
        qkv_bias=biases.qkv,
        output_bias=biases.output,
        mlp_bias=biases.mlp,
        bos_token_id=_token_id(fields, "bos_token_id", vocab_size),
        pad_token_id=_token_id(fields, "pad_token_id", vocab_size),
        eos_token_ids=_eos_token_ids(folder, fields, vocab_size),
        rope_scaling=rope_scaling,
    )


def ties_embeddings(folder: str | Path) -> bool:
    """Whether the LM head may be absent because it is the embedding table."""
    return _open_config(Path(folder)).boolean("tie_word_embeddings", default=False)


def write_model_config(folder: Path, config: ModelConfig, dtype: str, *, tied: bool = False) -> None:
    """Write ``config.json`` in the version's own field names; fields that v1 lacks only where the shape needs them.

    Args:
        folder: where.
        config: the model's shape; its architecture says which version.
        dtype: of the tensors.
        tied: the LM head is the embedding table.
    """
    table = name_table(config)
    content: dict[str, Any] = {
        "architectures": [config.architecture],
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else list(config.eos_token_ids),
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": table.model_type,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": config.pad_token_id,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        **_bias_fields(config, table),
        **(rotary_fields(config) if table is INTERNLM else rope_fields(config)),
    }
    if config.num_kv_heads != config.num_heads or table is not INTERNLM:
        content["num_key_value_heads"] = config.num_kv_heads
    if config.head_dim * config.num_heads != config.hidden_size or table is INTERNLM3:
        content["head_dim"] = config.head_dim
    write_json(folder / CONFIG_FILE, content)


def _bias_fields(config: ModelConfig, table: NameTable) -> dict[str, Any]:
    if table is INTERNLM3:
        return {"qkv_bias": config.qkv_bias, "bias": config.output_bias}
    if table is LLAMA:
        return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    return {"bias": config.qkv_bias}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with sorted keys, the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _open_config(folder: Path) -> JsonFields:
    if not folder.is_dir():
        raise CheckpointError(no_folder(folder), fix="give the folder of a Hugging Face checkpoint")
    if not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is empty", fix="give the folder of a Hugging Face checkpoint")
    return JsonFields.read(folder / CONFIG_FILE)


def _table(fields: JsonFields) -> NameTable:
    """The version that a config names."""
    stated = fields.content.get("architectures")
    if not isinstance(stated, list) or not stated:
        if "workbench" in fields:
            raise CheckpointError(
                f"{fields.path.parent} is a workbench checkpoint or engine, not a Hugging Face model",
                fix="give the Hugging Face folder that it was converted from",
            )
        raise CheckpointError(f"{fields.path} has no architectures", allowed=f"one of {', '.join(ARCHITECTURES)}")
    if not isinstance(stated[0], str) or stated[0] not in TABLES:
        shown = repr(stated[0])[:80]
        raise CheckpointError(f"{fields.path}: architecture {shown} is unknown", allowed=", ".join(ARCHITECTURES))
    return TABLES[stated[0]]


def _check_neutral(fields: JsonFields, neutral: dict[str, Any]) -> None:
    for name, value in neutral.items():
        if name in fields and fields.content[name] != value:
            raise fields.wrong(name, "nothing" if value is None else f"{json.dumps(value)}, or nothing")


def _biases(fields: JsonFields, table: NameTable) -> _Biases:
    """Which linear layers carry a bias.

    InternLM v1 and InternLM2 have one switch for q, k, v and o, which is on unless they say otherwise. InternLM3 has
    ``qkv_bias``, and its ``bias`` is for o and the MLP. Llama has ``attention_bias`` and ``mlp_bias``.
    """
    if table is INTERNLM3:
        _check_neutral(fields, {"attention_bias": False, "mlp_bias": fields.boolean("bias", default=False)})
        bias = fields.boolean("bias", default=False)
        return _Biases(fields.boolean("qkv_bias", default=False), bias, bias)
    attention = _attention_bias(fields, default=table is not LLAMA)
    _check_neutral(fields, {"qkv_bias": attention} | ({} if table is LLAMA else {"mlp_bias": False}))
    return _Biases(attention, attention, fields.boolean("mlp_bias", default=False))


def _attention_bias(fields: JsonFields, *, default: bool) -> bool:
    """Whether q, k, v and o carry a bias; ``attention_bias`` is Llama's name for InternLM's ``bias``."""
    if "bias" not in fields:
        return fields.boolean("attention_bias", default=default)
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


def _token_id(fields: JsonFields, name: str, vocab_size: int) -> int | None:
    """An id of the vocabulary; None where there is none, for which some configs write -1."""
    return None if fields.content.get(name) == -1 else fields.optional_id(name, vocab_size)


def _eos_token_ids(folder: Path, fields: JsonFields, vocab_size: int) -> tuple[int, ...]:
    """Ids of both files: chat models state their end-of-answer id in ``generation_config.json`` only."""
    ids = _stated_ids(fields, vocab_size)
    if (folder / GENERATION_FILE).is_file():
        ids += _stated_ids(JsonFields.read(folder / GENERATION_FILE), vocab_size)
    return tuple(dict.fromkeys(ids))


def _stated_ids(fields: JsonFields, vocab_size: int) -> tuple[int, ...]:
    """The ids that end a text; -1 stands for none, as in :func:`_token_id`."""
    stated = fields.content.get("eos_token_id")
    listed = stated if isinstance(stated, list) else [stated]
    kept = [number for number in listed if number != -1 or isinstance(number, bool)]
    if len(kept) == len(listed):
        return tuple(fields.ids("eos_token_id", vocab_size))
    return tuple(JsonFields(fields.path, {"eos_token_id": kept}).ids("eos_token_id", vocab_size))
