"""Attention over a cache that is written in place, on a CPU. Knows plain tensors and positions, no weights.

Scores and softmax are float32 in every dtype. Queries attend by blocks, each over no more keys than it may see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workbench.model.ops import Step
from workbench.model.rotary import RotaryTables

# Queries that attend together: small enough to skip most of what causality hides, large enough to be fast.
QUERY_BLOCK = 128


@dataclass(frozen=True)
class StepPlan:
    """What every layer of one step shares.

    Attributes:
        cos, sin: ``[batch, seq, 1, head_dim]`` float32; the first half of ``sin`` is negated.
        positions: ``[batch, seq]`` of the new tokens.
        start: the first new row of each sequence.
        length: cache rows that hold anything a query may see.
        is_even: all sequences begin at the same row.
    """

    cos: Tensor
    sin: Tensor
    positions: Tensor
    start: list[int]
    length: int
    is_even: bool


def plan_step(step: Step[Tensor], rotary: RotaryTables) -> StepPlan:
    """Everything about a step that does not depend on the layer."""
    cos, sin = (table[step.positions][:, :, None] for table in (rotary.cos, rotary.sin))
    start: list[int] = step.start.tolist()
    return StepPlan(
        cos=torch.cat([cos, cos], -1),
        sin=torch.cat([-sin, sin], -1),
        positions=step.positions,
        start=start,
        length=max(start) + step.positions.shape[1],
        is_even=min(start) == max(start),
    )


def write_in_place(cache: Tensor, rows: Tensor, plan: StepPlan) -> None:
    """Write ``rows`` ``[batch, kv_heads, seq, head_dim]`` into ``cache`` from each sequence's first new row on.

    Raises:
        IndexError: a row would fall outside the cache.
    """
    if plan.length > cache.shape[2]:
        raise IndexError(f"cache rows up to {plan.length - 1}, but it holds {cache.shape[2]}")
    seq = rows.shape[2]
    if plan.is_even:
        cache[:, :, plan.start[0] : plan.length] = rows
        return
    for sequence, first in enumerate(plan.start):
        cache[sequence, :, first : first + seq] = rows[sequence]


def attend(query: Tensor, key: Tensor, value: Tensor, plan: StepPlan) -> Tensor:
    """Causal softmax attention; the query at position p sees the rows 0 .. p.

    Args:
        query: ``[batch, heads, seq, head_dim]`` in any dtype, not scaled.
        key, value: ``[batch, kv_heads, rows, head_dim]`` of any float dtype, at least ``plan.length`` rows.
        plan: the step.

    Returns:
        Like ``query``.
    """
    if plan.is_even and query.dtype == value.dtype == torch.bfloat16 and query.shape[2] > 1:
        return _attend_bfloat16(query, key, value, plan)
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    grouped = query.shape[1] != key.shape[1]
    seq = query.shape[2]
    blocks = []
    for first in range(0, seq, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, seq)
        seen = plan.start[0] + last if plan.is_even else plan.length
        mask = None if plan.is_even and seq == 1 else _mask(plan, first, last, seen)
        blocks.append(
            functional.scaled_dot_product_attention(
                query[:, :, first:last], key[:, :, :seen], value[:, :, :seen], attn_mask=mask, enable_gqa=grouped
            )
        )
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)).to(dtype)


def _mask(plan: StepPlan, first: int, last: int, seen: int) -> Tensor:
    """What to add to scores ``[batch, heads, last - first, seen]``: 0 for rows up to each position, else -infinity."""
    positions = plan.positions[:1] if plan.is_even else plan.positions
    hidden = torch.arange(seen) > positions[:, None, first:last, None]
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def _attend_bfloat16(query: Tensor, key: Tensor, value: Tensor, plan: StepPlan) -> Tensor:
    """Many queries in bfloat16: float32 scores and softmax, then probabilities times values by the bfloat16 kernel."""
    batch, heads, seq, head_dim = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query = (query.float() * head_dim**-0.5).reshape(batch * heads, seq, head_dim)
    key = key.float().reshape(batch * heads, -1, head_dim).transpose(1, 2)
    value = value.reshape(batch * heads, -1, head_dim)
    context = torch.empty(batch * heads, seq, head_dim, dtype=torch.bfloat16)
    for first in range(0, seq, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, seq)
        seen = plan.start[0] + last
        scores = torch.bmm(query[:, first:last], key[:, :, :seen])
        # Only the last columns hide anything: row i of the block sees all but the columns that come after it.
        scores[:, :, plan.start[0] + first :] += torch.full((last - first, last - first), float("-inf")).triu_(1)
        weights = scores.softmax(-1).to(torch.bfloat16)
        context[:, first:last] = torch.bmm(weights, value[:, :seen])
    return context.view(batch, heads, seq, head_dim)
