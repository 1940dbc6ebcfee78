"""Perplexity over windows of tokens, one value per window kept, so that intervals can be made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

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
