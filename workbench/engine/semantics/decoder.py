"""The layers that TensorRT has for decoders: rotary embedding, KV cache update, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.engine.semantics.operands import (
    Operands,
    Operation,
    UnknownSemanticsError,
    has_input,
    operand,
    wide,
)
from workbench.engine.semantics.places import require_inside


def rotary_embedding(_trt: Any, layer: Any) -> Operation:
    """RoPE on ``[batch, heads, seq, head_dim]``.

    Tables are ``[positions, half]`` with position ids ``[batch, seq]``, else ``[batch, seq, half]``. Pairs are
    (i, i + half), or (2i, 2i + 1) when interleaved; columns beyond ``rotary_embedding_dim`` pass through.
    """
    interleaved, width = bool(layer.interleaved), int(layer.rotary_embedding_dim)
    by_position = has_input(layer, 3)

    def rotate(operands: Operands) -> Tensor:
        x, cos, sin = (wide(operand(operands, index)) for index in range(3))
        if by_position:
            positions = operand(operands, 3).long()
            require_inside(positions, torch.tensor(cos.shape[0]))
            cos, sin = cos[positions], sin[positions]
        cos, sin = cos[:, None], sin[:, None]
        turned, rest = x.tensor_split([width or x.shape[-1]], dim=-1)
        if interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
            mixed = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            mixed = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        return torch.cat([mixed, rest], -1)

    return rotate


def kv_cache_update(trt: Any, layer: Any) -> Operation:
    """A cache ``[batch, heads, max, dim]`` with new rows from each sequence's write index on.

    The update is ``[batch, heads, seq, dim]``, or ``[tokens, heads, dim]`` with cumulative lengths ``[batch + 1]``.
    TensorRT drops rows that fall outside; here they are an error.
    """
    packed = layer.update_form == trt.AttentionIOForm.PACKED_NHD

    def update(operands: Operands) -> Tensor:
        cache, rows, starts = operand(operands, 0).clone(), operand(operands, 1), operand(operands, 2).tolist()
        ends = operand(operands, 3).tolist() if packed else []
        for sequence, start in enumerate(starts):
            new = rows[ends[sequence] : ends[sequence + 1]].transpose(0, 1) if packed else rows[sequence]
            stop = start + new.shape[1]
            if start < 0 or stop > cache.shape[2]:
                raise IndexError(
                    f"writes cache rows {start}..{stop - 1} of sequence {sequence}, but it holds {cache.shape[2]}"
                )
            cache[sequence, :, start:stop] = new
        return cache

    return update


def _attention_slot(layer: Any, tensor: Any) -> int | None:
    """Which input of the layer an optional tensor of its attention is."""
    if tensor is None:
        return None
    names = [None if (each := layer.get_input(slot)) is None else each.name for slot in range(layer.num_inputs)]
    return names.index(tensor.name)


def attention_input(trt: Any, layer: Any) -> Operation:
    """Attention over ``[batch, heads, seq, dim]``: the query comes scaled; a boolean mask is True where it may look.

    Fewer key heads than query heads are shared by groups of neighbours. ``key_value_lengths`` ``[batch]`` hides the
    rows from there on; LOWER_RIGHT puts the last query on the last visible key, UPPER_LEFT the first on the first.
    """
    attention = layer.attention
    if trt.AttentionIOForm.PACKED_NHD in (attention.query_form, attention.key_value_form):
        raise UnknownSemanticsError("packed attention is not interpreted")
    if attention.norm_op != trt.AttentionNormalizationOp.SOFTMAX or attention.normalization_quantize_scale is not None:
        raise UnknownSemanticsError("only attention with an unquantized softmax is interpreted")
    if attention.query_lengths is not None:
        raise UnknownSemanticsError("query lengths of padded attention are not interpreted")
    mask_slot = _attention_slot(layer, attention.mask)
    length_slot = _attention_slot(layer, attention.key_value_lengths)
    causal = attention.causal_kind.name

    def attend(operands: Operands) -> Tensor:
        query, key, value = (operand(operands, index).float() for index in range(3))
        batch, heads, seq, dim = query.shape
        if heads % key.shape[1]:
            raise ValueError(f"{heads} query heads cannot share {key.shape[1]} key heads")
        grouped = query.reshape(batch, key.shape[1], -1, dim)
        scores = (grouped @ key.mT).view(batch, heads, seq, key.shape[2])
        lengths = None if length_slot is None else operand(operands, length_slot)
        hidden = _hidden(scores, lengths, causal)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        if mask_slot is not None:
            scores = _masked(scores, operand(operands, mask_slot))
        weights = scores.softmax(-1).view(batch, key.shape[1], -1, key.shape[2])
        return (weights @ value).view(batch, heads, seq, value.shape[-1])

    return attend


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()


def _hidden(scores: Tensor, lengths: Tensor | None, causal: str) -> Tensor | None:
    """Where lengths and the causal rule hide a key; broadcasts to ``[batch, heads, seq, keys]``. None is nowhere."""
    if lengths is None and causal == "NONE":
        return None
    seq, keys = scores.shape[-2:]
    visible = torch.tensor([keys]) if lengths is None else lengths
    visible = visible.long().reshape(-1, 1, 1, 1)
    rows, columns = torch.arange(seq)[:, None], torch.arange(keys)
    hidden = columns >= visible
    if causal == "LOWER_RIGHT":
        hidden = hidden | (columns > rows + visible - seq)
    elif causal == "UPPER_LEFT":
        hidden = hidden | (columns > rows)
    return hidden
