"""Perplexity over windows of tokens, one value per window kept, so that intervals can be made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from workbench.errors import LimitError
from workbench.progress import ProgressEvent, Reporter, silent


class HasLogits(Protocol):
    """A model that scores every position of a batch."""

    def logits(self, ids: Tensor) -> Tensor:
        """``[batch, seq]`` int64 -> ``[batch, seq, vocab]`` float32."""
        ...


@dataclass(frozen=True)
class Perplexity:
    """What one model made of some windows.

    Attributes:
        window_nll: mean negative log-likelihood per predicted token of each window, in nats.
        tokens: predicted tokens in all: one fewer per window than it holds.
    """

    window_nll: tuple[float, ...]
    tokens: int

    @property
    def value(self) -> float:
        """``exp`` of the mean over windows (all have one length)."""
        return math.exp(sum(self.window_nll) / len(self.window_nll))


def next_token_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token but the first, from the logits before it; softmax in float32.

    Args:
        logits: ``[seq, vocab]``.
        ids: ``[seq]`` int64.

    Returns:
        ``[seq - 1]`` float32 (float64 from float64 logits), in nats.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide[:-1], ids[1:].to(logits.device), reduction="none")


def perplexity(model: HasLogits, windows: Tensor, report: Reporter = silent) -> Perplexity:
    """Perplexity of ``windows`` ``[count, length]`` int64, one window at a time."""
    values = []
    for done, ids in enumerate(windows, start=1):
        values.append(float(next_token_nll(model.logits(ids[None])[0], ids).double().mean()))
        report(ProgressEvent("perplexity", done, len(windows), "windows"))
    return Perplexity(tuple(values), windows.shape[0] * (windows.shape[1] - 1))


@dataclass(frozen=True)
class PairedChange:
    """How much a candidate's perplexity differs from a reference's on the same windows.

    Attributes:
        relative: candidate / reference - 1.
        low, high: bounds of a 95 % bootstrap interval over windows; a change whose interval holds 0 is none.
    """

    relative: float
    low: float
    high: float


def paired_change(candidate: Perplexity, reference: Perplexity, resamples: int = 4000) -> PairedChange:
    """The change in perplexity with a paired bootstrap interval (percentiles; the same windows drawn for both).

    Raises:
        LimitError: the two were taken on different numbers of windows.
    """
    if len(candidate.window_nll) != len(reference.window_nll):
        raise LimitError(
            f"{len(candidate.window_nll)} windows against {len(reference.window_nll)}", fix="use the same windows"
        )
    wide = torch.float64
    difference = torch.tensor(candidate.window_nll, dtype=wide) - torch.tensor(reference.window_nll, dtype=wide)
    drawn = torch.randint(len(difference), (resamples, len(difference)), generator=torch.Generator().manual_seed(0))
    low, high = difference[drawn].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=wide)).expm1().tolist()
    return PairedChange(float(difference.mean().expm1()), low, high)
