"""The built-in text: English, in fixed parts, cut into windows of tokens. Knows nothing about models."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from workbench.errors import LimitError

# What it is called wherever a person meets it.
BUILT_IN = "built-in text"
# What each part of the built-in text is for, and its share of the characters. Calibration must reach 128 windows of 512
# tokens of about 4 characters, tests of quality 60.
PARTS = {"calibrate": 0.60, "tune": 0.11, "test": 0.29}
SEPARATOR = "\n\n"
# Topics that share a paragraph of this many characters or more belong together.
_TELLING_CHARACTERS = 80


def offline_text() -> str:
    """The language reference that ships with Python (``pydoc_data.topics``), its topics in alphabetical order.

    It differs between Python versions: record :func:`text_sha256` with every figure taken on it.
    """
    topics = _topics()
    return SEPARATOR.join(topics[name] for name in sorted(topics))


def offline_part(part: str) -> str:
    """One of the :data:`PARTS` of the built-in text, its topics in alphabetical order.

    No long paragraph is in two parts: topics repeat one another, and those that share a paragraph stay together. The
    largest such group goes first, each to the part that lacks most of its share.
    """
    topics = _topics()
    return SEPARATOR.join(topics[name] for name in sorted(_split()[part]))


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


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return dict(topics)


@cache
def _split() -> dict[str, list[str]]:
    """Topic names by part."""
    topics = _topics()
    total = sum(map(len, topics.values()))
    lacking = {part: share * total for part, share in PARTS.items()}
    split: dict[str, list[str]] = {part: [] for part in PARTS}
    sized = [(sum(len(topics[name]) for name in group), group) for group in _related(topics)]
    for size, group in sorted(sized, key=lambda item: (-item[0], item[1])):
        part = max(lacking, key=lambda name: lacking[name])
        split[part] += group
        lacking[part] -= size
    return split


def _related(topics: dict[str, str]) -> list[list[str]]:
    """Topics in groups, so that no two groups share a long paragraph."""
    group_of = {name: [name] for name in sorted(topics)}
    first_with: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < _TELLING_CHARACTERS:
                continue
            other = group_of[first_with.setdefault(words, name)]
            if other is not group_of[name]:
                other += group_of[name]
                group_of.update(dict.fromkeys(group_of[name], other))
    return [group for name, group in group_of.items() if group[0] == name]
