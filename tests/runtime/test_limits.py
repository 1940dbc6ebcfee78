"""What limits become where nobody chose them; refusals are tested with the sessions that raise them."""

from __future__ import annotations

import dataclasses

import pytest

from workbench.model.presets import PRESETS
from workbench.recipe import BuildLimits
from workbench.runtime.limits import fitting_limits


@pytest.mark.parametrize(
    ("positions", "stated", "limits", "fitted"),
    [
        (4096, (), (2048, 512), (2048, 512)),
        (2048, (), (2048, 512), (1536, 512)),
        (512, (), (2048, 512), (384, 128)),
        (2048, ("max_input_len",), (1900, 512), (1900, 148)),
        (2048, ("max_output_len",), (2048, 600), (1448, 600)),
        (2048, ("max_input_len", "max_output_len"), (2048, 512), (2048, 512)),
        (2048, ("max_input_len",), (2048, 512), (2048, 512)),
        (2048, ("max_output_len",), (2048, 2048), (2048, 2048)),
    ],
)
def test_limits_that_nobody_chose_fit_the_model(
    positions: int, stated: tuple[str, ...], limits: tuple[int, int], fitted: tuple[int, int]
) -> None:
    config = dataclasses.replace(PRESETS["internlm-7b"], max_position_embeddings=positions)
    assert fitting_limits(BuildLimits(8, *limits), config, frozenset(stated)) == BuildLimits(8, *fitted)
