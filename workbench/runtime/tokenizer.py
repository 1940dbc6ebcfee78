"""Opens the tokenizer of an HF folder. Asks no network, and runs no code from the folder unless a person allows it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from workbench.errors import CheckpointError, no_folder

JSON_FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """What the workbench uses of a tokenizer; those of transformers have it too.

    Attributes:
        bos_token, bos_token_id, eos_token, eos_token_id: None where there is none.
        chat_template: a Jinja template, or None.
    """

    @property
    def bos_token(self) -> str | None: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token(self) -> str | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def chat_template(self) -> str | None: ...

    def __len__(self) -> int: ...

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        verbose: bool = True,
    ) -> list[int]:
        """Text -> ids; with ``split_special_tokens`` what looks like a special token is mere text."""
        ...

    def decode(self, ids: Sequence[int] | int, *, skip_special_tokens: bool = False) -> str:
        """Ids -> text."""
        ...


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a folder: its ``tokenizer.json``, else its SentencePiece ``tokenizer.model``.

    Args:
        folder: with a tokenizer's files.
        trust_remote_code: run the tokenizer class that the folder holds as Python code. It may do whatever its author
            wrote, so a warning says which folder is trusted.

    Raises:
        CheckpointError: no such folder, neither file in it, or one that cannot be read.
    """
    from workbench.runtime.sentencepiece_tokenizer import MODEL_FILE, SentencePieceTokenizer

    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"tokenizer folder {no_folder(folder)}", fix="give the model's folder")
    if trust_remote_code:
        warnings.warn(f"running the Python code of the tokenizer in {folder}, as trust_remote_code asks", stacklevel=2)
        return _from_transformers(folder, trust_remote_code=True)
    if (folder / JSON_FILE).is_file():
        return _from_transformers(folder, trust_remote_code=False)
    if (folder / MODEL_FILE).is_file():
        return SentencePieceTokenizer.open(folder)
    raise CheckpointError(
        f"{folder} has no {JSON_FILE} and no {MODEL_FILE}",
        allowed="a folder with one of them (and tokenizer_config.json)",
        fix="give the folder of a complete Hugging Face model, or where the command has it --tokenizer_dir",
    )


def check_special_ids(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer that would begin or end texts with tokens that the model does not have.

    Args:
        tokenizer: any.
        vocab_size: of the model; ids are below it.

    Raises:
        CheckpointError: ``bos_token`` or ``eos_token`` has a larger id.
    """
    named = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id}
    for role, number in named.items():
        if number is not None and number >= vocab_size:
            raise CheckpointError(
                f"the tokenizer's {role} {getattr(tokenizer, role)!r} has the id {number}",
                allowed=f"ids of the model's vocabulary, 0 to {vocab_size - 1}",
                fix="give the tokenizer of this model",
            )


def special_ids(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Text -> id of the tokens that steer a model and are no part of what it says."""
    own = getattr(tokenizer, "special_ids", None)
    if own is not None:
        return cast("Mapping[str, int]", own)
    table: Mapping[int, Any] = cast("Any", tokenizer).added_tokens_decoder
    return {str(token.content): number for number, token in table.items() if token.special}


def encode_parts(tokenizer: Tokenizer, parts: Sequence[str | int]) -> list[int]:
    """Ids and mere texts in turn -> ids; no text becomes a special token, whatever it says.

    Raises:
        CheckpointError: this tokenizer makes a special token from a mere text.
    """
    own = getattr(tokenizer, "encode_parts", None)
    if own is not None:
        return cast("list[int]", own(parts))
    forbidden = {number: text for text, number in special_ids(tokenizer).items()}
    ids: list[int] = []
    anew = _every_run_starts_anew(tokenizer)
    for place, part in enumerate(parts):
        if isinstance(part, int):
            ids.append(part)
            continue
        encoded = _mere_text(tokenizer, part) if anew or place == 0 else _continued(tokenizer, part)
        for number in encoded:
            if number in forbidden:
                raise CheckpointError(
                    f"this tokenizer turns the text {forbidden[number]!r} into a token that steers the model",
                    fix="leave it out of the messages",
                )
        ids += encoded
    return ids


def _mere_text(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) if text else []


def _every_run_starts_anew(tokenizer: Tokenizer) -> bool:
    """Whether a text behind a special token is encoded as at the start of a text; some mark the very first run only."""
    for token, number in special_ids(tokenizer).items():
        ids = tokenizer.encode(f"{token}x", add_special_tokens=False)
        if ids[:1] == [number]:
            return ids[1:] == _mere_text(tokenizer, "x")
    return True


def _continued(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text as it is encoded behind something: encoded behind an anchor, which is cut off again."""
    for anchor in ("\n", "a"):
        start, whole = _mere_text(tokenizer, anchor), _mere_text(tokenizer, anchor + text)
        if whole[: len(start)] == start:
            return whole[len(start) :]
    return _mere_text(tokenizer, text)


def _from_transformers(folder: Path, *, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if trust_remote_code:
            return cast("Tokenizer", AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True))
        return cast("Tokenizer", PreTrainedTokenizerFast.from_pretrained(str(folder)))
    except Exception as error:  # the library raises a bare Exception for a broken tokenizer.json
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the tokenizer in {folder} cannot be read ({reason})", fix="copy it again") from error


def offers_chat_template(folder: str | Path) -> bool:
    """Whether a folder's tokenizer has a chat template; reads two small files, and no tokenizer."""
    folder = Path(folder)
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False
