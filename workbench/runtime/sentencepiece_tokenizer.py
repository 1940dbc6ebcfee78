"""A ``tokenizer.model`` as SentencePiece itself reads it, with the special tokens of the files beside it.

Stands in for the tokenizer classes that InternLM publishes as code: the same ids, without running that code. Text that
looks like a special token can be encoded as the mere text that it is. Knows nothing about chats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import CheckpointError
from workbench.runtime import sentencepiece_model
from workbench.runtime.special_tokens import ADDED_FILE, CONFIG_FILE, TokenSettings, read_token_settings

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

MODEL_FILE = "tokenizer.model"
# InternLM v1 ends turns with symbols of the model itself; no file calls them special.
_TURN_SYMBOLS = re.compile(r"<eo[a-z]{1,3}>|<\|[^|<>\s]+\|>")


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """Text <-> ids.

    Attributes:
        model: the bytes of ``tokenizer.model``.
        settings: what the files beside it say.
        special_ids: text -> id of every special token; ids of this table alone steer a model.
    """

    model: bytes
    settings: TokenSettings = field(default_factory=TokenSettings)
    special_ids: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_ids", dict(self._find_special()))

    @classmethod
    def open(cls, folder: Path) -> SentencePieceTokenizer:
        """The tokenizer of a folder with a ``tokenizer.model``.

        Raises:
            CheckpointError: a file is not in its format.
        """
        path = folder / MODEL_FILE
        settings = read_token_settings(folder)
        try:
            tokenizer = cls(path.read_bytes(), settings)
            # All that can go wrong with the bytes goes wrong here.
            tokenizer.decode(tokenizer.encode("a"))
        except (RuntimeError, ValueError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = " ".join(str(error).split()) or "not a SentencePiece model"
            raise CheckpointError(f"{path} cannot be read ({reason[:200]})", fix="copy it again") from error
        for role in ("bos_token", "eos_token"):
            text = settings.roles.get(role)
            if text is not None and tokenizer.convert_tokens_to_ids(text) is None:
                raise CheckpointError(
                    f"{folder}: {role} is {text[:80]!r}, which has no id",
                    allowed=f"a token of {MODEL_FILE}, {ADDED_FILE} or {CONFIG_FILE}'s added_tokens_decoder",
                    fix="copy the folder's tokenizer files again, all of them",
                )
        return tokenizer

    def __len__(self) -> int:
        return max([len(self._pieces), *(number + 1 for number in self.settings.ids.values())])

    @property
    def bos_token(self) -> str | None:
        return self._role("bos_token", self._plain.bos_id())

    @property
    def eos_token(self) -> str | None:
        return self._role("eos_token", self._plain.eos_id())

    @property
    def bos_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.eos_token)

    @property
    def chat_template(self) -> str | None:
        return self.settings.chat_template

    def convert_tokens_to_ids(self, token: str | None) -> int | None:
        """The id of one token; None where there is no such token."""
        if token is None:
            return None
        return self.settings.ids.get(token, self._ids_of_pieces.get(token))

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        verbose: bool = True,  # noqa: ARG002 - as transformers has it; nothing is told here
    ) -> list[int]:
        """Text -> ids.

        Args:
            text: any text.
            add_special_tokens: begin with bos and end with eos where the settings say so.
            split_special_tokens: what looks like a special token in the text is mere text.
        """
        ids = self.encode_parts([text] if split_special_tokens else self._parts(text))
        if not add_special_tokens:
            return ids
        bos, eos = self.bos_token_id, self.eos_token_id
        start = [bos] if self.settings.add_bos and bos is not None else []
        return start + ids + ([eos] if self.settings.add_eos and eos is not None else [])

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Ids and mere texts in turn -> ids; no text becomes a special token, whatever it says."""
        ids: list[int] = []
        begins = True
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
                # A symbol of the model stands inside a text; after a token added from outside a new text begins.
                begins = not self._is_own_symbol(part)
            elif part:
                ids += (self._plain if begins else self._inside).encode(part)
                begins = False
        return ids

    def decode(self, ids: Sequence[int] | int, *, skip_special_tokens: bool = False) -> str:
        """Ids -> text. Ids that no token has, as in a padded vocabulary, are no text."""
        result: list[str] = []
        run: list[int] = []
        begins = True
        for number in [ids] if isinstance(ids, int) else ids:
            text = self._added_texts.get(int(number))
            if text is None and 0 <= number < len(self._pieces):
                run.append(int(number))
                continue
            if run:
                result.append((self._plain if begins else self._inside).decode(run))
                run = []
            begins = not self._is_own_symbol(int(number))
            if text is not None and not (skip_special_tokens and int(number) in self._special_numbers):
                result.append(text)
        if run:
            result.append((self._plain if begins else self._inside).decode(run))
        return "".join(result)

    def _parts(self, text: str) -> Iterator[str | int]:
        """A text cut at its special and added tokens."""
        table = {**self.settings.ids, **self.special_ids}
        start = 0
        for match in self._pattern.finditer(text):
            yield text[start : match.start()]
            yield table[match[0]]
            start = match.end()
        yield text[start:]

    def _find_special(self) -> Iterator[tuple[str, int]]:
        for text in self.settings.special:
            number = self.convert_tokens_to_ids(text)
            if number is not None:
                yield text, number
        for number, piece in enumerate(self._pieces):
            turns = piece.kind == sentencepiece_model.USER_DEFINED and _TURN_SYMBOLS.fullmatch(piece.text)
            # An id that a file gives another text goes by that text alone.
            if (turns or piece.kind == sentencepiece_model.CONTROL) and number not in self.settings.ids.values():
                yield piece.text, number

    def _role(self, name: str, number: int) -> str | None:
        text = self.settings.roles.get(name)
        return self._pieces[number].text if text is None and number >= 0 else text

    def _is_own_symbol(self, number: int) -> bool:
        own = 0 <= number < len(self._pieces) and self._pieces[number].kind == sentencepiece_model.USER_DEFINED
        return own and number not in self.settings.ids.values()

    @cached_property
    def _pieces(self) -> list[sentencepiece_model.Piece]:
        return sentencepiece_model.pieces(self.model)

    @cached_property
    def _ids_of_pieces(self) -> dict[str, int]:
        return {piece.text: number for number, piece in enumerate(self._pieces)}

    @cached_property
    def _added_texts(self) -> dict[int, str]:
        return {number: text for text, number in {**self.settings.ids, **self.special_ids}.items()}

    @cached_property
    def _special_numbers(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Any special or added token, the longest first."""
        texts = sorted({*self.settings.ids, *self.special_ids}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    @cached_property
    def _plain(self) -> SentencePieceProcessor:
        """The model without its special tokens: whatever a text says, none of them comes out."""
        return _processor(sentencepiece_model.without(self.model, self._special_numbers))

    @cached_property
    def _inside(self) -> SentencePieceProcessor:
        """The same for text inside a text, which gets no space before it."""
        plain = sentencepiece_model.without(self.model, self._special_numbers)
        return _processor(sentencepiece_model.without_prefix(plain))


def _processor(model: bytes) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=model)
