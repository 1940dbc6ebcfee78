"""What every layer's semantics are made of: operands, dtypes, and the error for what is not interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.backends import tensorrt_types

Operands = Sequence[Tensor | None]
Operation = Callable[[Operands], Tensor]
Factory = Callable[[Any, Any], Operation]


class UnknownSemanticsError(NotImplementedError):
    """A layer kind, or a setting of one, that the interpreter does not execute."""


def torch_dtype(dtype: Any) -> torch.dtype:
    """The torch type that holds values of a ``trt.DataType``; INT4 values are held one per int8.

    Raises:
        UnknownSemanticsError: no torch type holds it.
    """
    if dtype.name == "INT4":
        return torch.int8
    try:
        return tensorrt_types.torch_dtype(dtype)
    except ValueError:
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
