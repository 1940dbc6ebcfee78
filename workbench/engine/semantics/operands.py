"""What every layer's semantics are made of: operands, dtypes, and the error for what is not interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Operands = Sequence[Tensor | None]
Operation = Callable[[Operands], Tensor]
Factory = Callable[[Any, Any], Operation]

# By the name of trt.DataType. INT4 has no torch type: its values are held one per int8.
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
    "INT4": torch.int8,
}


class UnknownSemanticsError(NotImplementedError):
    """A layer kind, or a setting of one, that the interpreter does not execute."""


def torch_dtype(dtype: Any) -> torch.dtype:
    """The torch type that holds values of a ``trt.DataType``.

    Raises:
        UnknownSemanticsError: no torch type holds it.
    """
    try:
        return TORCH_DTYPES[dtype.name]
    except KeyError:
        raise UnknownSemanticsError(f"dtype {dtype.name} is not interpreted") from None


def operand(operands: Operands, index: int) -> Tensor:
    """The operand at ``index``.

    Raises:
        ValueError: the layer has no such input.
    """
    value = operands[index] if index < len(operands) else None
    if value is None:
        raise ValueError(f"operand {index} is missing")
    return value


def wide(x: Tensor) -> Tensor:
    """Floats in float32, anything else as it is."""
    return x.float() if x.is_floating_point() else x


def has_input(layer: Any, index: int) -> bool:
    """Whether an optional input is connected, so that it replaces the attribute of the same meaning."""
    return bool(layer.num_inputs > index and layer.get_input(index) is not None)


def axes_of(mask: int) -> list[int]:
    """The axes whose bits are set."""
    return [axis for axis in range(8) if mask >> axis & 1]


def choose(table: dict[str, Callable[..., Tensor]], name: str, what: str) -> Callable[..., Tensor]:
    """The entry ``name`` of a table of operations.

    Raises:
        UnknownSemanticsError: there is none.
    """
    if name not in table:
        raise UnknownSemanticsError(f"{what} {name} is not interpreted; known: {', '.join(sorted(table))}")
    return table[name]


def data(operands: Operands) -> Tensor:
    """The first operand: the values that a layer works on."""
    return operand(operands, 0)
