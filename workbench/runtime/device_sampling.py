"""Chooses tokens where the logits are, and fetches them while the next step runs. Knows no session and no text.

The choice is :class:`~workbench.runtime.sampling.Sampler`'s: the same penalties and filters, and each row's own uniform
numbers, drawn ahead. All of it are tensor operations of fixed shapes, so that the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.runtime.sampling import SamplingError, SamplingOptions, no_numbers, no_token_left, uniform_numbers

# What is told in the place of a token that could not be chosen.
NO_NUMBERS, NO_TOKEN_LEFT = -1, -2


class DeviceSampler:
    """Chooses token after token for a batch of rows, on the device that the logits are on.

    Args:
        options: how.
        prompts: token ids of every row. The second row of equal prompts draws other tokens than the first.
        steps: how many tokens will be chosen for each row.
        vocab: how many tokens there are.
        device: where the logits will be.

    Attributes:
        told: int64 ``[rows]``: what :meth:`choose` chose last, or what was in its way.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompts: Sequence[Sequence[int]],
        *,
        steps: int,
        vocab: int,
        device: torch.device | str,
    ) -> None:
        self.options = options
        self.told = torch.zeros(len(prompts), dtype=torch.int64, device=device)
        self._steps = 0
        self._penalty = torch.tensor(options.repetition_penalty, device=device)
        # A divisor on the device: by one on the host a GPU would multiply with its reciprocal.
        coldest = torch.finfo(torch.float64).tiny
        self._temperature = torch.tensor(max(options.temperature, coldest), dtype=torch.float64, device=device)
        self._uniform = None if options.greedy else uniform_numbers(options, prompts, steps).to(device)
        shape, penalties = (len(prompts), vocab), options.presence_penalty or options.frequency_penalty
        self._said = _said(prompts, vocab).to(device) if options.repetition_penalty != 1 else None
        self._counts = torch.zeros(shape, dtype=torch.int32, device=device) if penalties else None
        self._bad_words = _BadWords(options.bad_words, prompts, vocab, device) if options.bad_words else None

    def choose(self, logits: Tensor) -> Tensor:
        """One token for every row, which is remembered as said; :attr:`told` says where none could be chosen.

        Args:
            logits: ``[rows, vocab]``.

        Returns:
            int64 ``[rows]``, each a token of the vocabulary.
        """
        logits = self._penalized(logits)
        largest, ids = logits.max(-1)
        possible = largest < torch.inf  # false of NaN too
        if self._uniform is not None:
            possible &= largest > -torch.inf
            ids = self._drawn(logits, largest, self._uniform[self._steps])
        self.told = ids.masked_fill(~possible, NO_NUMBERS)
        if self._bad_words is not None:
            self.told.masked_fill_((logits == -torch.inf).all(-1), NO_TOKEN_LEFT)
        self._remember(ids)
        return ids

    def _penalized(self, logits: Tensor) -> Tensor:
        options = self.options
        if self._said is not None:
            scaled = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
            logits = torch.where(self._said, scaled, logits)
        if self._counts is not None:
            penalties = self._counts.double() * options.frequency_penalty + options.presence_penalty
            logits = torch.where(self._counts > 0, logits - penalties.to(logits.dtype), logits)
        return logits if self._bad_words is None else self._bad_words.taken_from(logits)

    def _drawn(self, logits: Tensor, largest: Tensor, uniform: Tensor) -> Tensor:
        """The tokens on which uniform numbers ``[rows]`` fall; see :func:`workbench.runtime.sampling.candidates`."""
        options, vocab = self.options, logits.shape[1]
        few = options.top_k if 0 < options.top_k < vocab else 0
        kept = logits >= logits.topk(few).values[:, -1:] if few else torch.ones_like(logits, dtype=torch.bool)
        differences = (logits.double() - largest.double()[:, None]) / self._temperature
        probabilities = differences.masked_fill_(~kept, -torch.inf).softmax(-1)
        if options.top_p < 1:
            ordered = probabilities.topk(few).values if few else probabilities.sort(-1, descending=True).values
            before = ordered.cumsum(-1) - ordered
            least = ordered.masked_fill(before >= options.top_p, torch.inf).amin(-1, keepdim=True)
            kept &= probabilities >= least
            probabilities = probabilities.masked_fill_(~kept, 0)
            probabilities /= probabilities.sum(-1, keepdim=True)
        sums = probabilities.cumsum(-1)
        # Of the sums as they were rounded: a number below 1 then always falls on a token that was kept.
        total = sums.masked_fill(~kept, 0).amax(-1, keepdim=True)
        beyond = kept & ((sums > uniform[:, None] * total) | (sums >= total))
        places = torch.arange(vocab, device=logits.device)
        return torch.where(beyond, places, vocab).amin(-1).clamp_(max=vocab - 1)

    def _remember(self, ids: Tensor) -> None:
        self._steps += 1
        if self._said is not None:
            self._said.scatter_(1, ids[:, None], True)
        if self._counts is not None:
            self._counts.scatter_add_(1, ids[:, None], torch.ones_like(ids[:, None], dtype=torch.int32))
        if self._bad_words is not None:
            self._bad_words.remember(ids)


class _BadWords:
    """Words of a list that a row has begun, and the tokens that would end them."""

    def __init__(
        self,
        words: Sequence[Sequence[int]],
        prompts: Sequence[Sequence[int]],
        vocab: int,
        device: torch.device | str,
    ) -> None:
        words = [word for word in words if word[-1] < vocab]
        longest = max((len(word) - 1 for word in words), default=0)
        # Beginnings end at the same place as the row does; -1 before them is any token, -2 before the row is none.
        begun = [[-1] * (longest - len(word) + 1) + list(word[:-1]) for word in words]
        tails = [([-2] * longest + list(prompt))[len(prompt) :] for prompt in prompts]
        self._begun = torch.tensor(begun, dtype=torch.int64, device=device).view(len(words), longest)
        self._last = torch.tensor([word[-1] for word in words], dtype=torch.int64, device=device)
        self._tail = torch.tensor(tails, dtype=torch.int64, device=device).view(len(prompts), longest)

    def taken_from(self, logits: Tensor) -> Tensor:
        """Logits ``[rows, vocab]`` with minus infinity for every token that would end a word."""
        begun = ((self._tail[:, None] == self._begun) | (self._begun == -1)).all(-1)
        limits = torch.where(begun, -torch.inf, torch.inf).to(logits.dtype)
        return logits.scatter_reduce(1, self._last.expand(len(logits), -1), limits, "amin")

    def remember(self, ids: Tensor) -> None:
        if self._tail.shape[1]:
            self._tail = torch.cat((self._tail[:, 1:], ids[:, None]), 1)


def _said(prompts: Sequence[Sequence[int]], vocab: int) -> Tensor:
    said = torch.zeros(len(prompts), vocab, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        said[row, torch.as_tensor(prompt, dtype=torch.int64)] = True
    return said


def fetched(steps: Iterator[Tensor]) -> Iterator[list[int]]:
    """Tokens on the host, each step's while the next one runs.

    Args:
        steps: gives what :attr:`DeviceSampler.told` says after each step; to ask for it must not wait for the device.

    Raises:
        SamplingError: a token could not be chosen.
    """
    waiting: _Fetch | None = None
    for place, told in enumerate(steps):
        fetch = _Fetch(told)
        if place == 0:
            # At once: before the second step runs for the first time, its kernels may have to be compiled.
            yield fetch.tokens()
            continue
        if waiting is not None:
            yield waiting.tokens()
        waiting = fetch
    if waiting is not None:
        yield waiting.tokens()


class _Fetch:
    """A copy to the host that is under way."""

    def __init__(self, told: Tensor) -> None:
        self._done: Any = None
        if told.is_cuda:
            self._held = torch.empty(told.shape, dtype=told.dtype, pin_memory=True)
            self._held.copy_(told, non_blocking=True)
            event: Any = torch.cuda.Event
            self._done = event()
            self._done.record()
        else:
            self._held = told.clone()

    def tokens(self) -> list[int]:
        if self._done is not None:
            self._done.synchronize()
        tokens: list[int] = self._held.tolist()
        if min(tokens) < 0:
            raise _error(min(tokens))
        return tokens


def _error(code: int) -> SamplingError:
    return no_token_left() if code == NO_TOKEN_LEFT else no_numbers()
