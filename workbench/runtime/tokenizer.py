"""Opens the tokenizer of an HF folder. Runs no code from the folder and asks no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a folder's ``tokenizer.json`` and ``tokenizer_config.json`` describe.

    Raises:
        CheckpointError: no such folder, no ``tokenizer.json`` in it, or one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"tokenizer folder {folder} does not exist", fix="give the model's folder")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            allowed="a folder with tokenizer.json (and tokenizer_config.json)",
            fix="give the folder of a complete Hugging Face model, or where the command has it --tokenizer_dir",
        )
    from transformers import PreTrainedTokenizerFast

    try:
        return cast("PreTrainedTokenizerBase", PreTrainedTokenizerFast.from_pretrained(str(folder)))
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
