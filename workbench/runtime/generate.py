"""Generation: token ids in, token ids out. Knows nothing about text, or about how logits are made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.runtime.limits import check_ids, check_output_len, check_prompts
from workbench.runtime.sampling import GREEDY, Sampler, SamplingOptions
from workbench.runtime.session import Session, TokenSession

TokenSink = Callable[[int, int], bool | None]


@dataclass(frozen=True)
class TokenChoice:
    """One token, and how probable the model found it and others in its place.

    Attributes:
        id: the token.
        logprob: natural logarithm of its probability, before temperature, penalties and filters.
        top: (id, logprob) of the most probable tokens, the most probable first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ChoiceSink:
    """Wants to be told more of a token than its id.

    Attributes:
        tell: called with (row, choice); ends the row by returning True.
        top: how many of the most probable tokens to tell beside the one chosen.
    """

    tell: Callable[[int, TokenChoice], bool | None]
    top: int = 5


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_output_len: int,
    *,
    eos_token_ids: Collection[int] | None = None,
    on_token: TokenSink | ChoiceSink | None = None,
    sampling: SamplingOptions = GREEDY,
) -> list[list[int]]:
    """Token after token, for every prompt at once; the most probable one unless ``sampling`` says otherwise.

    Args:
        session: a loaded checkpoint or engine.
        prompts: token ids; prompts may differ in length.
        max_output_len: most new tokens per prompt.
        eos_token_ids: ids that end a row; the model's own when None.
        on_token: called with (row, id) as soon as a token is known; a row that has ended gets no more. Returning True
            ends the row after this token. A :class:`ChoiceSink` is told probabilities, too.
        sampling: how tokens are chosen.

    Returns:
        The new ids of each row, without the id that ended it.

    Raises:
        LimitError: a batch, prompt or output beyond the session's limits.
        SamplingError: logits are NaN, or bad words leave no token.
    """
    check_prompts(prompts, session.config, session.limits)
    check_output_len(max(map(len, prompts)), max_output_len, session.config, session.limits)
    ends = set(session.config.eos_token_ids if eos_token_ids is None else eos_token_ids)
    rows: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    if isinstance(session, TokenSession) and not isinstance(on_token, ChoiceSink):
        steps: Iterator[tuple[list[int], Tensor | None]]
        steps = ((chosen, None) for chosen in session.tokens(prompts, sampling, max_output_len))
    else:
        steps = _steps(session, prompts, sampling)
    for chosen, logits in steps:
        for row in sorted(running):
            if chosen[row] in ends:
                running.discard(row)
                continue
            rows[row].append(chosen[row])
            stopped = on_token is not None and _tell(on_token, row, chosen[row], logits)
            if stopped or len(rows[row]) == max_output_len:
                running.discard(row)
        if not running:
            break
    return rows


def _steps(
    session: Session, prompts: Sequence[Sequence[int]], sampling: SamplingOptions
) -> Iterator[tuple[list[int], Tensor | None]]:
    """A token for every row and the logits that it was chosen from, for as long as somebody asks."""
    sampler = Sampler(sampling, prompts)
    logits = session.prefill(prompts)
    while True:
        chosen = sampler.choose(logits)
        yield chosen, logits
        # Rows that have ended are computed along: every row keeps its place in the batch.
        logits = session.decode(torch.tensor(chosen))


def follow(
    session: Session, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], *, top: int = 5
) -> list[list[TokenChoice]]:
    """How probable a model finds outputs that are given, such as those of another recipe.

    Args:
        session: a loaded checkpoint or engine.
        prompts: token ids.
        outputs: token ids after each prompt; at least one of them is not empty.
        top: how many of the most probable tokens to tell for each place.

    Returns:
        A choice for every id of each output; where ``top[0]`` is another id, the model would have gone on otherwise.

    Raises:
        LimitError: a batch, prompt or output beyond the session's limits, or an id outside the vocabulary.
    """
    check_prompts(prompts, session.config, session.limits)
    longest = max(map(len, outputs))
    check_output_len(max(map(len, prompts)), longest, session.config, session.limits)
    for output in filter(len, outputs):
        check_ids(torch.tensor(output), session.config)
    choices: list[list[TokenChoice]] = [[] for _ in prompts]
    logits = session.prefill(prompts)
    for place in range(longest):
        for row, output in enumerate(outputs):
            if place < len(output):
                choices[row].append(token_choice(logits[row], output[place], top))
        if place + 1 < longest:
            # A row whose output is over goes on with any token; nobody looks at it.
            ids = [output[place] if place < len(output) else 0 for output in outputs]
            logits = session.decode(torch.tensor(ids))
    return choices


def token_choice(logits: Tensor, token: int, top: int) -> TokenChoice:
    """A token beside the most probable ones: from ``[vocab]`` logits."""
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(top, logprobs.shape[0]))
    pairs = zip(map(int, ids.tolist()), map(float, values.tolist()), strict=True)
    return TokenChoice(token, float(logprobs[token]), tuple(pairs))


def _tell(sink: TokenSink | ChoiceSink, row: int, token: int, logits: Tensor | None) -> bool:
    if isinstance(sink, ChoiceSink):
        assert logits is not None
        return bool(sink.tell(row, token_choice(logits[row], token, sink.top)))
    return bool(sink(row, token))
