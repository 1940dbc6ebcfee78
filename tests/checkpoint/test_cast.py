"""Casting loses no values silently."""

from __future__ import annotations

import pytest
import torch

from workbench.checkpoint.cast import all_finite, cast, count_not_finite, torch_dtype
from workbench.errors import CheckpointError


def test_the_same_type_is_the_same_tensor() -> None:
    tensor = torch.ones(2)
    assert cast(tensor, torch.float32, "t") is tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_overflow_is_refused(dtype: torch.dtype) -> None:
    match = r"the o bias holds 131072, which torch\.float16 cannot hold; allowed: magnitudes up to 65504; choose dtype"
    with pytest.raises(CheckpointError, match=match):
        cast(torch.tensor([1.0, -131072.0, float("nan")]).to(dtype), torch.float16, "the o bias")


def test_values_that_were_infinite_stay_so() -> None:
    result = cast(torch.tensor([float("inf"), float("nan"), 2.0]), torch.float16, "t")
    assert result.isinf().tolist() == [True, False, False]
    assert count_not_finite(result) == 2


def test_widening_and_rounding() -> None:
    assert cast(torch.tensor([65504.0], dtype=torch.float16), torch.float32, "t").item() == 65504
    assert cast(torch.tensor([1 + 2**-9]), torch.bfloat16, "t").item() == 1


def test_all_finite() -> None:
    assert all_finite(torch.zeros(0))
    assert all_finite(torch.tensor([65504.0], dtype=torch.float16))
    for strange in ("nan", "inf", "-inf"):
        assert not all_finite(torch.tensor([0.0, float(strange), 1.0]))


def test_dtypes_by_name() -> None:
    assert torch_dtype("bfloat16") == torch.bfloat16
