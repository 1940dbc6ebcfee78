"""English text that is always at hand, cut into windows of tokens. Knows nothing about models."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from workbench.errors import LimitError


def offline_text() -> str:
    """The language reference that ships with Python (``pydoc_data.topics``), its topics in alphabetical order.

    It differs between Python versions: record :func:`text_sha256` with every figure taken on it.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def text_sha256(text: str) -> str:
    """The text's SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def windows(tokenizer: Any, text: str, count: int, length: int) -> Tensor:
    """``count`` windows of ``length`` tokens that do not overlap, spread evenly over the text; no special tokens.

    Returns:
        ``[count, length]`` int64.

    Raises:
        LimitError: the text is too short for that many tokens, or a number is below its least value.
    """
    if count < 1 or length < 2:
        raise LimitError(
            f"{count} windows of {length} tokens", allowed="1 window or more of 2 tokens or more", fix="raise them"
        )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    if len(ids) < count * length:
        raise LimitError(
            f"the text has {len(ids)} tokens, but {count} windows of {length} need {count * length}",
            fix="give a longer text, or ask for fewer or shorter windows",
        )
    stride = len(ids) // count
    return torch.tensor([ids[first * stride : first * stride + length] for first in range(count)], dtype=torch.int64)
