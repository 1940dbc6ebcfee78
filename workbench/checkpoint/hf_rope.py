"""What a Hugging Face ``config.json`` says about rotary positions, in the spellings of every InternLM and of Llama.

InternLM v1 writes ``rotary: {base, type, scaling_factor}``; later ones ``rope_theta`` and ``rope_scaling: {type or
rope_type, factor}``; transformers 5 writes ``rope_parameters``, which holds the base too. Makes no tables.
"""

from __future__ import annotations

import json
from typing import Any

from workbench.checkpoint.json_fields import JsonFields
from workbench.errors import CheckpointError
from workbench.model.config import DYNAMIC, LINEAR, ModelConfig, RopeScaling

PLAIN = "default"
# v1's own name for plain RoPE is "origin".
ROTARY_TYPES = ("origin", DYNAMIC)
ROPE_TYPES = (PLAIN, LINEAR, DYNAMIC)
ROPE_SECTIONS = ("rope_parameters", "rope_scaling")
DEFAULT_THETA = 10000.0


def read_rope(fields: JsonFields, positions: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary positions, wherever they are stated.

    Args:
        fields: the config.
        positions: its ``max_position_embeddings``.

    Returns:
        ``rope_theta`` and ``rope_scaling`` of a :class:`ModelConfig`; what is not stated is base 10000 and plain RoPE.

    Raises:
        CheckpointError: two places contradict each other, a kind of scaling that we do not compute, an illegal number.
    """
    thetas: dict[str, float] = {}
    scalings: dict[str, RopeScaling | None] = {}
    if "rotary" in fields:
        rotary = fields.section("rotary")
        thetas["rotary.base"] = rotary.positive("base", DEFAULT_THETA)
        # The defaults of v1's own class: dynamic, with a factor of 1.
        dynamic = rotary.text("type", DYNAMIC, allowed=ROTARY_TYPES) == DYNAMIC
        scalings["rotary"] = RopeScaling(DYNAMIC, _factor(rotary, "scaling_factor", 1.0)) if dynamic else None
    for name in ROPE_SECTIONS:
        if name in fields:
            section = fields.section(name)
            scalings[name] = _scaling(section, positions)
            if "rope_theta" in section:
                thetas[f"{name}.rope_theta"] = section.positive("rope_theta")
    if "rope_theta" in fields:
        thetas["rope_theta"] = fields.positive("rope_theta")
    theta = _agreed(fields, thetas, "one base of RoPE")
    return DEFAULT_THETA if theta is None else theta, _agreed(fields, scalings, "one scaling of RoPE")


def rope_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields that state a model's RoPE as InternLM2, InternLM3 and Llama write it."""
    scaling = config.rope_scaling
    stated = None if scaling is None else {"type": scaling.kind, "factor": scaling.factor}
    return {"rope_theta": config.rope_theta, "rope_scaling": stated}


def rotary_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields that state a model's RoPE as InternLM v1 writes it; linear scaling, which v1 lacks, as later ones."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rotary": {"base": config.rope_theta, "type": "origin"}}
    if scaling.kind == LINEAR:
        return rope_fields(config)
    return {"rotary": {"base": config.rope_theta, "type": scaling.kind, "scaling_factor": scaling.factor}}


def _scaling(section: JsonFields, positions: int) -> RopeScaling | None:
    kind = section.text("rope_type", section.text("type", PLAIN, allowed=ROPE_TYPES), allowed=ROPE_TYPES)
    if section.text("type", kind, allowed=ROPE_TYPES) != kind:
        raise section.wrong("type", f"{kind!r}, as rope_type is")
    for name, value in section.content.items():
        if isinstance(value, dict):
            raise section.wrong(name, "one RoPE for all layers")
    _require(section, "partial_rotary_factor", 1.0)
    if kind != LINEAR:
        # The length from which a dynamic base grows is always max_position_embeddings, as in transformers.
        _require(section, "original_max_position_embeddings", positions)
    return None if kind == PLAIN else RopeScaling(kind, _factor(section, "factor"))


def _factor(section: JsonFields, name: str, default: float | None = None) -> float:
    factor = section.positive(name, default)
    if factor < 1:
        raise section.wrong(name, "a number from 1")
    return factor


def _require(section: JsonFields, name: str, value: float) -> None:
    if name in section and section.content[name] != value:
        raise section.wrong(name, f"{json.dumps(value)}, or nothing")


def _agreed(fields: JsonFields, stated: dict[str, Any], allowed: str) -> Any:
    """The one value of several places; None where there is none."""
    if len(set(stated.values())) > 1:
        said = ", ".join(f"{name} is {_shown(value)}" for name, value in stated.items())
        raise CheckpointError(f"{fields.path}: {said}", allowed=allowed)
    return next(iter(stated.values()), None)


def _shown(value: Any) -> str:
    if isinstance(value, RopeScaling):
        return f"{value.kind} by {value.factor:g}"
    return "plain" if value is None else f"{value:g}"
