"""Token ids as the short texts that a person reads: one per token, nothing lost. Knows a tokenizer, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, special tokens by their names.

    A token that is only a part of a character shows as the tokenizer's own name for it. SentencePiece drops the space
    before a word when it decodes a single token; here it stays.
    """
    texts: dict[int, str] = {}
    for token in ids:
        if token not in texts:
            texts[token] = _text(tokenizer, token)
    return [texts[token] for token in ids]


def _text(tokenizer: Any, token: int) -> str:
    name = tokenizer.convert_ids_to_tokens(token)
    if name is None:  # the model has more rows than the tokenizer has tokens
        return f"<{token}>"
    if name.startswith(_WORD_START):
        return str(name.replace(_WORD_START, " "))
    text = str(tokenizer.decode([token]))
    return str(name) if not text or _UNFINISHED in text else text
