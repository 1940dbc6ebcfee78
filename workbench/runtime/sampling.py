"""Chooses the next token of every row from logits: the most probable one, or a draw. Knows no session and no text.

A row's draws come from a generator of its own, whose key is the seed and the row's prompt: they do not depend on the
rows beside it. Filters are those of transformers, in its order: repetition, presence and frequency penalties, bad
words, temperature, top-k, top-p (arXiv:1904.09751).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import numpy as np


class SamplingError(WorkbenchError):
    """Sampling options without a meaning, or logits that nothing can be drawn from."""


def no_numbers() -> SamplingError:
    """Of logits that are NaN or infinite."""
    return SamplingError(
        "the model's logits are no numbers (NaN or infinite)", fix="compare the checkpoint with its model"
    )


def no_token_left() -> SamplingError:
    """Of bad words that every token would end."""
    return SamplingError("the bad words leave no token to go on with", fix="take some of them out")


def _require(name: str, value: object, fine: bool, allowed: str) -> None:
    if not fine:
        raise SamplingError(f"{name} is {value}", allowed=allowed)


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen. The defaults are greedy: the most probable token.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k: only the most probable tokens are drawn from, this many; 1 is greedy, 0 sets no limit.
        top_p: only the fewest tokens that together have this probability are drawn from; 1 sets no limit.
        repetition_penalty: divides positive logits of tokens that prompt or output hold, and multiplies negative ones
            (arXiv:1909.05858); 1 for none.
        presence_penalty: taken from the logit of every token that the output holds.
        frequency_penalty: taken from it as often as the output holds the token.
        random_seed: the same seed draws the same tokens.
        bad_words: token ids in a row that must not be generated.
    """

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    random_seed: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        finite = ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty")
        for name in finite:
            _require(name, getattr(self, name), abs(getattr(self, name)) < float("inf"), "a finite number")
        _require("temperature", self.temperature, self.temperature >= 0, "numbers from 0, which is greedy")
        _require("top_k", self.top_k, self.top_k >= 0, "whole numbers from 0, which sets no limit")
        if not 0 < self.top_p <= 1:
            raise SamplingError(
                f"top_p is {self.top_p}",
                allowed="above 0, up to 1",
                fix="leave it out for no limit, or set top_k to 1 for the most probable token",
            )
        _require("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "numbers above 0")
        _require("random_seed", self.random_seed, self.random_seed >= 0, "whole numbers from 0")
        _require("bad_words", self.bad_words, all(self.bad_words), "words of at least one token")

    @property
    def greedy(self) -> bool:
        """Nothing is drawn: the most probable token that penalties and bad words leave."""
        return self.top_k == 1 or self.temperature == 0

    @property
    def changes_logits(self) -> bool:
        """Penalties or bad words are to be applied."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.bad_words)


GREEDY = SamplingOptions()
_FEW = 1024


class Sampler:
    """Chooses token after token for a batch of rows.

    Args:
        options: how.
        prompts: token ids of every row. The second row of equal prompts draws other tokens than the first.
    """

    def __init__(self, options: SamplingOptions, prompts: Sequence[Sequence[int]]) -> None:
        self.options = options
        self._prompts = [list(map(int, prompt)) for prompt in prompts]
        self._rows: list[list[int]] = [[] for _ in prompts]
        self._random = [] if options.greedy else _generators(options.random_seed, self._prompts)

    def choose(self, logits: Tensor) -> list[int]:
        """One token id for every row, which is remembered as said.

        Args:
            logits: ``[batch, vocab]``.

        Raises:
            SamplingError: a row's logits are NaN or infinite, or bad words leave no token.
        """
        if self.options.changes_logits:
            logits = self._penalized(logits)
        largest, most_probable = logits.max(-1)
        if bool((largest.isnan() | (largest == torch.inf)).any()):
            raise no_numbers()
        chosen: list[int] = most_probable.tolist() if self.options.greedy else self._drawn(logits)
        for row, token in zip(self._rows, chosen, strict=True):
            row.append(token)
        return chosen

    def _penalized(self, logits: Tensor) -> Tensor:
        rows = zip(logits, self._prompts, self._rows, strict=True)
        return torch.stack([penalized(row, prompt, output, self.options) for row, prompt, output in rows])

    def _drawn(self, logits: Tensor) -> list[int]:
        return [
            _draw(*candidates(row, self.options), float(generator.random()))
            for row, generator in zip(logits, self._random, strict=True)
        ]


def penalized(logits: Tensor, prompt: Sequence[int], output: Sequence[int], options: SamplingOptions) -> Tensor:
    """Logits ``[vocab]`` of one row, after penalties and without its bad words.

    Raises:
        SamplingError: no token is left.
    """
    logits = logits.clone()
    said = [*prompt, *output]
    if options.repetition_penalty != 1.0:
        held = torch.tensor(sorted(set(said)), device=logits.device)
        values, penalty = logits[held], options.repetition_penalty
        logits[held] = torch.where(values < 0, values * penalty, values / penalty)
    if output and (options.presence_penalty or options.frequency_penalty):
        counts = Counter(output)
        penalties = [options.presence_penalty + options.frequency_penalty * count for count in counts.values()]
        logits[list(counts)] -= torch.tensor(penalties, dtype=logits.dtype, device=logits.device)
    for word in options.bad_words:
        start = len(said) - len(word) + 1
        if word[-1] < logits.shape[0] and start >= 0 and tuple(said[start:]) == word[:-1]:
            logits[word[-1]] = float("-inf")
    if options.bad_words and bool((logits == float("-inf")).all()):
        raise no_token_left()
    return logits


def candidates(logits: Tensor, options: SamplingOptions) -> tuple[Tensor, Tensor]:
    """What one row draws from, after temperature, top-k and top-p; at least the most probable token.

    A token as probable as the last one that a filter keeps stays with it, so that nothing depends on how ties are
    sorted.

    Args:
        logits: ``[vocab]``.
        options: the filters.

    Returns:
        Ids in rising order and their probabilities, float64, which sum to 1.

    Raises:
        SamplingError: a logit is NaN, or infinite.
    """
    largest = logits.amax()
    if not bool(largest.isfinite()):
        raise no_numbers()
    ids = torch.arange(logits.shape[0], device=logits.device)
    if 0 < options.top_k < logits.shape[0]:
        ids = (logits >= logits.topk(options.top_k).values[-1]).nonzero()[:, 0]
    # What is subtracted from all changes no probability, and keeps the smallest temperatures finite.
    differences = logits[ids].double() - largest.double()
    probabilities = (differences / max(options.temperature, torch.finfo(torch.float64).tiny)).softmax(-1)
    if options.top_p == 1:
        return ids, probabilities
    kept = (probabilities >= _least_kept(probabilities, options.top_p)).nonzero()[:, 0]
    return ids[kept], probabilities[kept] / probabilities[kept].sum()


def _least_kept(probabilities: Tensor, top_p: float) -> Tensor:
    """The probability of the last token that top-p keeps: one is kept while those before it do not reach ``top_p``."""
    # Nearly always a few tokens reach it, and to sort them all is slow.
    for size in (min(_FEW, len(probabilities)), len(probabilities)):
        ordered = probabilities.topk(size).values
        sums = ordered.cumsum(-1)
        if float(sums[-1]) >= top_p:
            break
    return ordered[sums - ordered < top_p][-1]


def _draw(ids: Tensor, probabilities: Tensor, uniform: float) -> int:
    """The token on which a number from 0 up to 1, without 1, falls."""
    sums = probabilities.cumsum(-1)
    # Of the sum as it was rounded: a number below 1 then always falls on a token.
    place = int(torch.searchsorted(sums, uniform * sums[-1], right=True))
    return int(ids[min(place, len(ids) - 1)])


def uniform_numbers(options: SamplingOptions, prompts: Sequence[Sequence[int]], steps: int) -> Tensor:
    """What a :class:`Sampler` would draw with in its first steps: float64 ``[steps, rows]``, from 0 up to 1."""
    rows = [generator.random(steps) for generator in _generators(options.random_seed, prompts)]
    return torch.stack([torch.from_numpy(row) for row in rows], dim=1)


def _generators(seed: int, prompts: Sequence[Sequence[int]]) -> list[np.random.Generator]:
    """A generator for each row; the second of equal prompts has another than the first."""
    seen: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in prompts:
        key = tuple(map(int, prompt))
        generators.append(_generator(seed, key, seen[key]))
        seen[key] += 1
    return generators


def _generator(seed: int, prompt: Sequence[int], occurrence: int) -> np.random.Generator:
    """A generator of uniform numbers that this row has to itself."""
    import numpy as np

    text = ",".join(map(str, (seed, occurrence, *prompt)))
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key))
