"""Greedy generation: token ids in, token ids out. Knows nothing about text, or about how logits are made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from workbench.runtime.limits import check_output_len, check_prompts
from workbench.runtime.session import Session

TokenSink = Callable[[int, int], None]


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_output_len: int,
    *,
    eos_token_ids: Collection[int] | None = None,
    on_token: TokenSink | None = None,
) -> list[list[int]]:
    """The most probable token, again and again, for every prompt at once.

    Args:
        session: a loaded checkpoint or engine.
        prompts: token ids; prompts may differ in length.
        max_output_len: most new tokens per prompt.
        eos_token_ids: ids that end a row; the model's own when None.
        on_token: called with (row, id) as soon as a token is known. A row that has ended gets no more.

    Returns:
        The new ids of each row, without the id that ended it.

    Raises:
        LimitError: a batch, prompt or output beyond the session's limits.
    """
    check_prompts(prompts, session.config, session.limits)
    check_output_len(max(map(len, prompts)), max_output_len, session.config, session.limits)
    ends = set(session.config.eos_token_ids if eos_token_ids is None else eos_token_ids)
    rows: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    chosen = session.prefill(prompts).argmax(-1).tolist()
    while running:
        for row in sorted(running):
            if chosen[row] in ends:
                running.discard(row)
                continue
            rows[row].append(chosen[row])
            if on_token is not None:
                on_token(row, chosen[row])
            if len(rows[row]) == max_output_len:
                running.discard(row)
        if running:
            # Rows that have ended are computed along: every row keeps its place in the batch.
            chosen = session.decode(torch.tensor(chosen)).argmax(-1).tolist()
    return rows
