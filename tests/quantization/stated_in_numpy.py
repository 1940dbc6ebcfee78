"""Every quantization once more, in numpy, from the words of DESIGN and docs/checkpoint_format.md alone.

Shares no code with the workbench: whoever changes a formula there must come here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Integers = NDArray[np.int8]


def scale_of(absmax: Array, limit: int = 127) -> Array:
    """absmax / limit in float32; 1 where that is zero."""
    scale = (absmax.astype(np.float32) / np.float32(limit)).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)


def int8(x: Array, scale: Array) -> Integers:
    return np.clip(np.rint(x.astype(np.float32) / scale), -127, 127).astype(np.int8)


def int8_rows(weight: Array) -> tuple[Integers, Array]:
    scale = scale_of(np.abs(weight).max(1))
    return int8(weight, scale[:, None]), scale


def int8_projections(weight: Array, rows: list[int]) -> tuple[Integers, Array]:
    """One scale for each projection, repeated for each of its rows."""
    parts = np.split(weight, np.cumsum(rows)[:-1])
    scales = [scale_of(np.abs(part).max()) for part in parts]
    integers = [int8(part, scale) for part, scale in zip(parts, scales, strict=True)]
    repeated = [np.full(len(part), scale, np.float32) for part, scale in zip(parts, scales, strict=True)]
    return np.concatenate(integers), np.concatenate(repeated)


def int4_groups(weight: Array, group: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Packed bytes and float16 scales; the last group of a row may be short."""
    rows, columns = weight.shape
    group = group or columns
    scales, values = [], []
    for start in range(0, columns, group):
        part = weight[:, start : start + group].astype(np.float32)
        scale = scale_of(np.abs(part).max(1), 7).astype(np.float16)
        scales.append(scale)
        values.append(np.clip(np.rint(part / scale.astype(np.float32)[:, None]), -8, 7).astype(np.int64))
    integers = np.concatenate(values, 1)
    packed = np.zeros((rows, columns // 2), np.uint8)
    for column in range(columns):
        packed[:, column // 2] |= ((integers[:, column] % 16) << (4 * (column % 2))).astype(np.uint8)
    return packed, np.stack(scales, 1)


def smoothing(inputs: Array, weights: Array, alpha: float) -> Array:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) in float64, rounded to float32; 1 where a maximum is 0."""
    s = np.ones(len(inputs), np.float32)
    for j, (x, w) in enumerate(zip(inputs.astype(np.float64), weights.astype(np.float64), strict=True)):
        if x > 0 and w > 0:
            s[j] = max(x**alpha / w ** (1 - alpha), 1e-5)
    return s


@dataclass
class Layer:
    """One layer's projections by their Hugging Face names, and the maxima of the four inputs."""

    weights: dict[str, Array]
    inputs: dict[str, Array]
    head_dim: int


def smooth(layer: Layer, alpha: dict[str, float]) -> None:
    """Fold the smoothing of each group in ``alpha`` into ``layer``: o and down before qkv and gate_up."""
    w, x = layer.weights, layer.inputs
    if "o" in alpha:
        heads = w["o_proj.weight"].shape[1] // layer.head_dim
        kv_heads = len(w["v_proj.weight"]) // layer.head_dim
        columns = np.abs(w["o_proj.weight"]).max(0)
        owner = [
            (head // (heads // kv_heads)) * layer.head_dim + channel
            for head in range(heads)
            for channel in range(layer.head_dim)
        ]
        shared_x, shared_w = np.zeros(kv_heads * layer.head_dim, np.float32), np.zeros(kv_heads * layer.head_dim)
        np.maximum.at(shared_x, owner, x["o"])
        np.maximum.at(shared_w, owner, columns)
        s = smoothing(shared_x, shared_w, alpha["o"])
        w["v_proj.weight"] = w["v_proj.weight"] / s[:, None]
        if "v_proj.bias" in w:
            w["v_proj.bias"] = w["v_proj.bias"] / s
        w["o_proj.weight"] = w["o_proj.weight"] * s[owner]
        x["o"] = x["o"] / s[owner]
    if "down" in alpha:
        s = smoothing(x["down"], np.abs(w["down_proj.weight"]).max(0), alpha["down"])
        w["up_proj.weight"] = w["up_proj.weight"] / s[:, None]
        w["down_proj.weight"] = w["down_proj.weight"] * s
        x["down"] = x["down"] / s
    for group, norm, names in (
        ("qkv", "input_layernorm.weight", ("q_proj", "k_proj", "v_proj")),
        ("gate_up", "post_attention_layernorm.weight", ("gate_proj", "up_proj")),
    ):
        if group in alpha:
            maxima = np.max([np.abs(w[f"{name}.weight"]).max(0) for name in names], 0)
            s = smoothing(x[group], maxima, alpha[group])
            w[norm] = w[norm] / s
            for name in names:
                w[f"{name}.weight"] = w[f"{name}.weight"] * s
            x[group] = x[group] / s
