"""RoPE as every InternLM and Llama states it; read, written and read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.random_model import SMALL
from workbench.checkpoint.hf_rope import read_rope, rope_fields, rotary_fields
from workbench.checkpoint.json_fields import JsonFields
from workbench.errors import CheckpointError
from workbench.model.config import RopeScaling

POSITIONS = 2048


def read(content: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    return read_rope(JsonFields(Path("config.json"), content), POSITIONS)


@pytest.mark.parametrize(
    ("content", "theta", "scaling"),
    [
        ({}, 1e4, None),
        ({"rope_scaling": None, "rope_theta": 5e7}, 5e7, None),
        ({"rotary": {"base": 1000000, "type": "origin"}}, 1e6, None),
        # InternLM v1 has no factor: its class takes 1.
        ({"rotary": {"base": 10000, "type": "dynamic"}}, 1e4, RopeScaling("dynamic", 1.0)),
        ({"rotary": {}}, 1e4, RopeScaling("dynamic", 1.0)),
        ({"rotary": {"type": "dynamic", "scaling_factor": 2.0}}, 1e4, RopeScaling("dynamic", 2.0)),
        # internlm2-7b, internlm3-8b-instruct.
        ({"rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 1e6, RopeScaling("dynamic", 2.0)),
        (
            {"rope_theta": 50000000, "rope_scaling": {"rope_type": "dynamic", "factor": 6.0}},
            5e7,
            RopeScaling("dynamic", 6.0),
        ),
        ({"rope_scaling": {"type": "default"}}, 1e4, None),
        ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}}, 1e4, RopeScaling("linear", 4.0)),
        ({"rope_scaling": {"type": "linear", "factor": 4, "original_max_position_embeddings": 512}}, 1e4, ...),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0}}, 5e5, None),
        (
            {
                "rope_parameters": {
                    "rope_type": "dynamic",
                    "rope_theta": 5e5,
                    "factor": 2.0,
                    "original_max_position_embeddings": POSITIONS,
                }
            },
            5e5,
            RopeScaling("dynamic", 2.0),
        ),
        ({"rope_theta": 5e5, "rotary": {"type": "origin", "base": 500000}}, 5e5, None),
    ],
    ids=str,
)
def test_every_spelling(content: dict[str, Any], theta: float, scaling: Any) -> None:
    assert read(content) == (theta, RopeScaling("linear", 4.0) if scaling is ... else scaling)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rotary": {"type": "yarn"}}, "rotary.type is 'yarn'; allowed: 'origin' or 'dynamic'"),
        ({"rotary": {"type": "origin", "base": -1}}, "rotary.base is -1"),
        (
            {"rotary": {"type": "dynamic", "scaling_factor": 0.5}},
            "rotary.scaling_factor is 0.5; allowed: a number",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling.rope_type is 'yarn'; allowed: 'default' or 'linear' or 'dynamic'",
        ),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.rope_type is 'llama3'; allowed: 'default' or"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.type is 'longrope'; allowed: 'default' or"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is nothing; allowed: a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor is 0.5; allowed: a number from 1"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": float("nan")}},
            "rope_scaling.factor is nan; allowed: ",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2}},
            "rope_scaling.type is 'linear'; allowed: 'dynamic', as rope_type is",
        ),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta is 0; allowed: a number above 0"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2, "original_max_position_embeddings": 1024}},
            "rope_scaling.original_max_position_embeddings is 1024; allowed: 2048, or nothing",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor is 0.5; allowed: 1.0, or nothing",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_attention is {'rope_type': 'default'}; allowed: one RoPE for all layers",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; allowed: an object"),
        (
            {"rope_theta": 1e6, "rotary": {"type": "origin", "base": 10000}},
            "rotary.base is 10000, rope_theta is 1e+06; allowed: one base of RoPE",
        ),
        (
            {"rotary": {"type": "origin"}, "rope_scaling": {"type": "linear", "factor": 2}},
            "rotary is plain, rope_scaling is linear by 2; allowed: one scaling of RoPE",
        ),
    ],
)
def test_what_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(content)
    assert str(error.value).startswith("config.json: ")
    assert message in str(error.value)


@pytest.mark.parametrize("fields", [rope_fields, rotary_fields])
@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 2.5), RopeScaling("dynamic", 6.0)])
def test_what_is_written_is_read_back(fields: Any, scaling: RopeScaling | None) -> None:
    config = dataclasses.replace(SMALL, rope_theta=5e7, rope_scaling=scaling)
    assert read(fields(config)) == (5e7, scaling)
