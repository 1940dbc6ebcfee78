"""TensorRT's element types and torch's."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace

import pytest
import torch

from workbench.backends.tensorrt_types import TORCH_DTYPES, torch_dtype, trt_dtype

DataType = Enum("DataType", [*TORCH_DTYPES, "INT4"])  # type: ignore[misc]
TRT = SimpleNamespace(DataType=DataType)


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_there_and_back(name: str) -> None:
    assert trt_dtype(TRT, torch_dtype(DataType[name])) is DataType[name]


def test_eight_bits_are_never_taken_for_four() -> None:
    assert trt_dtype(TRT, torch.int8) is DataType["INT8"]


def test_types_without_a_partner() -> None:
    with pytest.raises(
        ValueError, match=r"TensorRT has no type for torch\.float64; it has torch\.float32, torch\.float16"
    ):
        trt_dtype(TRT, torch.float64)
    with pytest.raises(ValueError, match="torch has no type for TensorRT's INT4; it has FLOAT, HALF"):
        torch_dtype(DataType["INT4"])


def test_every_name_is_tensorrts_own() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for name, dtype in TORCH_DTYPES.items():
        assert trt_dtype(trt, dtype).name == name
