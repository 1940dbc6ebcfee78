"""The errors of single tokens, with their texts: is a difference spread over a text, or in a few places of it?"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor

from workbench.errors import WorkbenchError

# How many tokens before and after a token show where it stands.
NEIGHBOURS = 6


@dataclass(frozen=True, eq=False)
class TokenErrors:
    """Relative L2 error of every token of the first windows, tap by tap.

    Attributes:
        ids: token ids ``[windows, length]`` int64.
        by_tap: per tap ``[windows, length]`` float32.
        texts: the tokens' texts, window by window; empty when nobody gave a tokenizer.
    """

    ids: Tensor
    by_tap: dict[str, Tensor] = field(repr=False)
    texts: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    @property
    def windows(self) -> int:
        """How many windows were kept."""
        return len(self.ids)

    def of(self, tap: str) -> Tensor:
        """The errors of one tap ``[windows, length]``.

        Raises:
            WorkbenchError: no such tap was compared.
        """
        if tap not in self.by_tap:
            raise WorkbenchError(f"tap {tap!r} has no errors per token", fix="choose one of the frame's column 'tap'")
        return self.by_tap[tap]

    def window_texts(self, window: int) -> tuple[str, ...]:
        """The tokens of one window; their ids where the texts are not known."""
        if self.texts:
            return self.texts[window]
        return tuple(f"<{token}>" for token in self.ids[window].tolist())

    def worst(self, tap: str, count: int = 8) -> pd.DataFrame:
        """The tokens with the largest error, the largest first.

        Returns:
            window, position, id, before, text, after, relative_l2; ``before`` and ``after`` are the neighbours' texts.

        Raises:
            WorkbenchError: no such tap was compared.
        """
        errors = self.of(tap)
        # What is not a number is the worst of all.
        order = errors.flatten().nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)
        rows = []
        for place in order[:count].tolist():
            window, position = divmod(place, errors.shape[1])
            texts = self.window_texts(window)
            rows.append(
                {
                    "window": window,
                    "position": position,
                    "id": int(self.ids[window, position]),
                    "before": "".join(texts[max(0, position - NEIGHBOURS) : position]),
                    "text": texts[position],
                    "after": "".join(texts[position + 1 : position + 1 + NEIGHBOURS]),
                    "relative_l2": float(errors[window, position]),
                }
            )
        columns = ["window", "position", "id", "before", "text", "after", "relative_l2"]
        return pd.DataFrame(rows, columns=columns)
