"""Weight types: each is exactly what a checkpoint stores for one layer. ``Ops.linear`` dispatches on the type."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseWeight:
    """A linear layer in its dtype: ``y = x @ weight.T + bias``.

    Attributes:
        weight: ``[out, in]`` float32, float16 or bfloat16.
        bias: ``[out]`` of the same dtype, or None.
    """

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Int8Weight:
    """Weight-only INT8: ``y = x @ dtype(weight * weight_scale[:, None]).T + bias``; activations stay in the dtype.

    The dequantized weight is rounded to the activations' dtype, as a GEMM in that dtype reads it.

    Attributes:
        weight: ``[out, in]`` int8 in [-127, 127].
        weight_scale: ``[out]`` float32.
        bias: ``[out]`` in the model's dtype, or None.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Int4GroupWeight:
    """Weight-only INT4: ``y = x @ dtype(integers * scale of their group).T + bias``; activations stay in the dtype.

    Attributes:
        weight: ``[out, in / 2]`` uint8, two values in [-8, 7] a byte, input channel 2i in the low nibble.
        weight_scale: ``[out, groups]`` float16; group g covers input channels ``g * group_size`` and on, and the last
            group may be shorter.
        group_size: input channels per group; ``in`` where a row has one scale.
        bias: ``[out]`` in the model's dtype, or None.
    """

    weight: Tensor
    weight_scale: Tensor
    group_size: int
    bias: Tensor | None = None


@dataclass(frozen=True)
class SmoothQuantWeight:
    """W8A8: int8 x int8 -> int32, then both scales in float32, then the bias. Smoothing is already folded in.

    Attributes:
        weight: ``[out, in]`` int8 in [-127, 127].
        weight_scale: ``[out]`` float32; rows of one projection are equal where scales are per tensor.
        bias: ``[out]`` in the model's dtype, or None.
        input_scale: ``[]`` float32 from calibration; None quantizes each token by its own maximum at run time.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None = None
    input_scale: Tensor | None = None


LinearWeight = DenseWeight | Int8Weight | Int4GroupWeight | SmoothQuantWeight


@dataclass(frozen=True)
class KVScales:
    """Scales of an INT8 KV cache, K taken after RoPE: ``real = integer * scale``; float32 ``[]`` or ``[kv_heads]``."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. Rows of ``qkv``: query heads, key heads, value heads; of ``gate_up``: gate, then up.

    Attributes:
        attention_norm, mlp_norm: RMSNorm weights ``[hidden]``.
        qkv: ``[(heads + 2 * kv_heads) * head_dim, hidden]``.
        o: ``[hidden, heads * head_dim]``.
        gate_up: ``[2 * intermediate, hidden]``.
        down: ``[hidden, intermediate]``.
        kv_scales: present when the KV cache is INT8.
    """

    attention_norm: Tensor
    qkv: LinearWeight
    o: LinearWeight
    mlp_norm: Tensor
    gate_up: LinearWeight
    down: LinearWeight
    kv_scales: KVScales | None = None


@dataclass(frozen=True)
class ModelWeights:
    """What one rank holds. ``layers`` may be a lazy sequence that reads each layer when it is asked for.

    Attributes:
        layers: this stage's decoder layers.
        embedding: ``[vocab, hidden]`` on the first stage, else None.
        final_norm: ``[hidden]`` on the last stage, else None.
        lm_head: ``[vocab, hidden]`` on the last stage, else None.
    """

    layers: Sequence[LayerWeights]
    embedding: Tensor | None
    final_norm: Tensor | None
    lm_head: LinearWeight | None


def on_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in it, however deep in dataclasses, on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: on_device(getattr(value, f.name), device) for f in fields})
    return value
