"""What calibration saw, in the shape that a model needs it. Knows ranges and widths; computes nothing."""

from __future__ import annotations

from torch import Tensor

from workbench.checkpoint.unified_layout import linear_names, linear_shape, site_of
from workbench.errors import CheckpointError
from workbench.model.config import ModelConfig
from workbench.quantization.ranges import ActivationRanges


def input_absmax(ranges: ActivationRanges, linear: str, features: int) -> Tensor:
    """``[features]`` float32: the largest magnitude of each input channel of ``linear``.

    Raises:
        CheckpointError: the ranges lack the layer, or have another width.
    """
    return _of_width(ranges.input_absmax(linear), features, f"inputs of {linear}")


def output_absmax(ranges: ActivationRanges, linear: str, features: int) -> Tensor:
    """``[features]`` float32: the largest magnitude of each output channel of ``linear``, its bias included.

    Raises:
        CheckpointError: as :func:`input_absmax`.
    """
    return _of_width(ranges.output_absmax(linear), features, f"outputs of {linear}")


def kv_absmax(ranges: ActivationRanges, place: tuple[int, str], heads: int, percent: float) -> Tensor:
    """``[heads]`` float32: the magnitude that ``percent`` of a head's keys or values do not exceed.

    Args:
        ranges: what calibration saw.
        place: the layer's number, and "key" or "value".
        heads: KV heads of the model.
        percent: 100 for the maximum.

    Raises:
        CheckpointError: as :func:`input_absmax`, or no histogram where ``percent`` needs one.
    """
    layer, part = place
    return _of_width(ranges.kv_absmax(layer, part, percent), heads, f"{part}s of layer {layer}")


def check_fits(ranges: ActivationRanges, config: ModelConfig) -> None:
    """Refuse ranges that lack a linear layer or a KV head of a model.

    Raises:
        CheckpointError: they do.
    """
    for linear in linear_names(config):
        rows, columns = linear_shape(config, site_of(linear))
        input_absmax(ranges, linear, columns)
        output_absmax(ranges, linear, rows)
    for layer in range(config.num_layers):
        for part in ("key", "value"):
            kv_absmax(ranges, (layer, part), config.num_kv_heads, 100.0)


def _of_width(maxima: Tensor, width: int, name: str) -> Tensor:
    if tuple(maxima.shape) != (width,):
        raise CheckpointError(
            f"the ranges of the {name} are {list(maxima.shape)}",
            allowed=str([width]),
            fix="calibrate this model: workbench calibrate",
        )
    return maxima
