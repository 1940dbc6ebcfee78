"""The one table of TensorRT's element types and torch's. Knows no TensorRT module by name: it is passed in."""

from __future__ import annotations

from typing import Any

import torch

# By the name of trt.DataType; one to one. INT4 is not here: torch has no such type.
TORCH_DTYPES: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "FP8": torch.float8_e4m3fn,
}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def trt_dtype(trt: Any, dtype: torch.dtype) -> Any:
    """TensorRT's ``DataType`` for a torch dtype.

    Raises:
        ValueError: TensorRT has none.
    """
    if dtype not in _NAMES:
        raise ValueError(f"TensorRT has no type for {dtype}; it has {', '.join(map(str, _NAMES))}")
    return getattr(trt.DataType, _NAMES[dtype])


def torch_dtype(kind: Any) -> torch.dtype:
    """Torch's dtype for a TensorRT ``DataType``.

    Raises:
        ValueError: torch has none.
    """
    if kind.name not in TORCH_DTYPES:
        raise ValueError(f"torch has no type for TensorRT's {kind.name}; it has {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[kind.name]
