"""The ``config.json`` of a unified checkpoint: written from a model's shape and a recipe, and read back.

TensorRT-LLM's keys come first; what they cannot say stands in the section ``workbench``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.checkpoint.hf_config import CONFIG_FILE, write_json
from workbench.checkpoint.json_fields import JsonFields
from workbench.checkpoint.unified_layout import linear_names
from workbench.errors import CheckpointError, RecipeError, no_folder
from workbench.model.config import DYNAMIC, LINEAR, ModelConfig, RopeScaling
from workbench.recipe import DTYPES, Int4WeightOnly, Int8WeightOnly, Recipe, SmoothQuant

FORMAT_VERSION = 1
KIND = "checkpoint"
RANGES_FILE = "ranges.safetensors"
DUMMY_SEED = "dummy_seed"
DENSE, CALIBRATED, QUANTIZED = "dense", "calibrated", "quantized"
_AGAIN = "convert the model again: workbench convert"


@dataclass(frozen=True)
class UnifiedConfig:
    """Everything that ``config.json`` says.

    Attributes:
        model: the decoder's shape.
        recipe: what the checkpoint was converted by.
        source: what it was converted from: ``fingerprint``, a SHA-256 over the source's config and headers; of a
            checkpoint whose weights no file holds, ``dummy_seed`` too.
        rank_checksums: the writer's checksum of each ``rankN.safetensors``.
        smoothing: what is folded into the weights: alpha and groups; granularities do not matter.
        ranges_checksum: file name -> checksum of the ranges that a calibrated checkpoint carries, else empty.
    """

    model: ModelConfig
    recipe: Recipe
    source: dict[str, str]
    rank_checksums: tuple[str, ...]
    smoothing: SmoothQuant | None = None
    ranges_checksum: dict[str, str] = field(default_factory=dict)

    @property
    def dummy_seed(self) -> int | None:
        """What the weights are drawn from where no file holds them; None for a checkpoint with files."""
        seed = self.source.get(DUMMY_SEED)
        return None if seed is None else int(seed)

    @property
    def state(self) -> str:
        """Quantized: the file holds integers or scales. Calibrated: ranges lie beside it. Else dense."""
        if self.recipe.weights is not None or self.recipe.kv_cache is not None:
            return QUANTIZED
        return CALIBRATED if self.ranges_checksum else DENSE


def rank_file(rank: int) -> str:
    """The file that holds one rank's tensors."""
    return f"rank{rank}.safetensors"


def write_unified_config(folder: Path, config: UnifiedConfig) -> None:
    """Write ``config.json``."""
    model, recipe = config.model, config.recipe
    content = {
        "architecture": model.architecture,
        "dtype": recipe.dtype,
        "logits_dtype": "float32",
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_size": model.head_dim,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": model.max_position_embeddings,
        "hidden_act": "silu",
        "rotary_base": model.rope_theta,
        "rotary_scaling": _scaling_to(model.rope_scaling),
        "norm_epsilon": model.norm_epsilon,
        "attn_bias": model.qkv_bias,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "quantization": _quantization(model, recipe),
        "mapping": {"world_size": len(config.rank_checksums), "tp_size": 1, "pp_size": 1},
        "workbench": {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "state": config.state,
            "weight_packing": "plain",
            "output_bias": model.output_bias,
            "mlp_bias": model.mlp_bias,
            "bos_token_id": model.bos_token_id,
            "pad_token_id": model.pad_token_id,
            "eos_token_ids": list(model.eos_token_ids),
            "recipe": recipe.to_dict(),
            "smoothing": _smoothing_to(config.smoothing),
            "ranges_checksum": config.ranges_checksum,
            "source": config.source,
            "rank_checksums": list(config.rank_checksums),
        },
    }
    write_json(folder / CONFIG_FILE, content)


def _quantization(model: ModelConfig, recipe: Recipe) -> dict[str, Any]:
    quantized = recipe.weights is not None
    kept = [name for name in linear_names(model) if recipe.weights_of(name) is None] if quantized else []
    return {
        "quant_algo": quant_algo(recipe),
        "kv_cache_quant_algo": None if recipe.kv_cache is None else "INT8",
        "group_size": (recipe.weights.group_size or None) if isinstance(recipe.weights, Int4WeightOnly) else None,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": kept,
    }


def quant_algo(recipe: Recipe) -> str | None:
    """TensorRT-LLM's name for how weights are quantized."""
    match recipe.weights:
        case None:
            return None
        case Int8WeightOnly():
            return "W8A16"
        case Int4WeightOnly():
            return "W4A16"
        case SmoothQuant(weight="per_tensor", activation="per_tensor"):
            return "W8A8_SQ_PER_TENSOR_PLUGIN"
        case SmoothQuant(weight=weight, activation=activation):
            return f"W8A8_SQ_{weight}_{activation}_plugin".upper()


def _scaling_to(scaling: RopeScaling | None) -> dict[str, Any] | None:
    return None if scaling is None else {"type": scaling.kind, "factor": scaling.factor}


def _smoothing_to(smoothing: SmoothQuant | None) -> dict[str, Any] | None:
    if smoothing is None or not smoothing.groups:
        return None
    return {
        "alpha": smoothing.alpha,
        "groups": list(smoothing.groups),
        "alpha_by_group": dict(smoothing.alpha_by_group),
    }


def read_unified_config(folder: Path) -> UnifiedConfig:
    """Read ``config.json``.

    Raises:
        CheckpointError: the folder is no checkpoint of ours, of another format version, or a field is illegal.
    """
    if not folder.is_dir():
        raise CheckpointError(no_folder(folder), fix="give a folder that 'workbench convert' wrote")
    if (folder / RANGES_FILE).is_file() and not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder} holds the ranges of a calibration, and no checkpoint",
            fix=f"make one of the model: workbench convert --model_dir ... --ranges {folder} -o ...",
        )
    fields = JsonFields.read(folder / CONFIG_FILE)
    if "workbench" not in fields or fields.section("workbench").content.get("kind") != KIND:
        raise _no_checkpoint(folder, fields)
    ours = fields.section("workbench")
    version = ours.integer("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has format version {version}", allowed=str(FORMAT_VERSION), fix=_AGAIN)
    ours.text("weight_packing", allowed=("plain",))
    return UnifiedConfig(
        model=_model(fields, ours),
        recipe=_recipe(fields, ours),
        source=_source(ours.section("source")),
        rank_checksums=ours.texts("rank_checksums"),
        smoothing=_smoothing(ours),
        ranges_checksum=_ranges_checksum(ours),
    )


def _no_checkpoint(folder: Path, fields: JsonFields) -> CheckpointError:
    """What a folder with a ``config.json`` is instead, and how to a checkpoint from there."""
    if "architectures" in fields:
        fix = (
            f"convert it first: workbench convert --model_dir {folder} -o CKPT (build and plan also take the model "
            f"itself: --model_dir {folder})"
        )
        return CheckpointError(f"{folder} is a Hugging Face model, not a checkpoint of the workbench", fix=fix)
    if "workbench" in fields and fields.section("workbench").content.get("kind") == "engine":
        built_from = _built_from(folder, fields)
        fix = "give the checkpoint that it was built from, or make one: workbench convert"
        if built_from is not None:
            fix = f"give {built_from}, which it was built from"
        return CheckpointError(f"{folder} is an engine, not a checkpoint", fix=fix)
    return CheckpointError(f"{folder} is no checkpoint of the workbench", fix="make one: workbench convert")


def _built_from(folder: Path, fields: JsonFields) -> Path | None:
    """The checkpoint of an engine's folder, which states it relative to itself; None where it is not there."""
    try:
        path = folder / fields.section("workbench").section("checkpoint").text("path")
    except CheckpointError:
        return None
    if not path.is_dir():
        return None
    short = Path(os.path.normpath(path))  # another place where the folder is a link
    return short if short.is_dir() and short.samefile(path) else path.resolve()


def config_checksum(folder: Path) -> str:
    """SHA-256 of ``config.json``: as that holds the checksum of every rank's file, it changes with any weight."""
    return hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest()


def _model(fields: JsonFields, ours: JsonFields) -> ModelConfig:
    vocab_size = fields.integer("vocab_size")
    return ModelConfig(
        architecture=fields.text("architecture"),
        vocab_size=vocab_size,
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=fields.integer("num_attention_heads"),
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_dim=fields.integer("head_size"),
        norm_epsilon=fields.positive("norm_epsilon"),
        rope_theta=fields.positive("rotary_base"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        qkv_bias=fields.boolean("attn_bias"),
        output_bias=ours.boolean("output_bias"),
        mlp_bias=ours.boolean("mlp_bias", default=False),
        bos_token_id=ours.optional_id("bos_token_id", vocab_size),
        pad_token_id=ours.optional_id("pad_token_id", vocab_size),
        eos_token_ids=ours.ids("eos_token_ids", vocab_size),
        rope_scaling=_scaling(fields),
    )


def _scaling(fields: JsonFields) -> RopeScaling | None:
    if "rotary_scaling" not in fields:
        return None
    section = fields.section("rotary_scaling")
    kind = section.text("type", allowed=(LINEAR, DYNAMIC))
    factor = section.positive("factor")
    if factor < 1:
        raise section.wrong("factor", "a number from 1")
    return RopeScaling(kind, factor)


def _source(section: JsonFields) -> dict[str, str]:
    source = {key: str(value) for key, value in section.content.items()}
    if not source.get(DUMMY_SEED, "0").isdecimal():
        raise section.wrong(DUMMY_SEED, "a whole number from 0")
    return source


def _smoothing(ours: JsonFields) -> SmoothQuant | None:
    if "smoothing" not in ours:
        return None
    section = ours.section("smoothing")
    try:
        recipe = Recipe.from_dict({"weights": {"kind": SmoothQuant.kind, **section.content}})
    except RecipeError as error:
        raise CheckpointError(f"{ours.path}: workbench.smoothing: {error}", fix=_AGAIN) from error
    assert isinstance(recipe.weights, SmoothQuant)
    return recipe.weights


def _ranges_checksum(ours: JsonFields) -> dict[str, str]:
    if "ranges_checksum" not in ours:
        return {}
    return {name: str(value) for name, value in ours.section("ranges_checksum").content.items()}


def _recipe(fields: JsonFields, ours: JsonFields) -> Recipe:
    try:
        recipe = Recipe.from_dict(ours.section("recipe").content)
    except RecipeError as error:
        raise CheckpointError(f"{fields.path}: workbench.recipe: {error}", fix=_AGAIN) from error
    if fields.text("dtype", allowed=DTYPES) != recipe.dtype:
        raise fields.wrong("dtype", f"{recipe.dtype} by workbench.recipe")
    return recipe
