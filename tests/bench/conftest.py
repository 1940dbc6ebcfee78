"""A random model with a tokenizer of its own, so that a bench does in a second what it does with a real one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = 90


@pytest.fixture
def speaking_model_dir(random_model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A private copy of ``random_model_dir()`` whose tokenizer knows the digits of what it reads, byte by byte."""
    folder = Path(shutil.copytree(random_model_dir(), tmp_path / "model"))
    vocabulary = {chr(33 + index): index for index in range(WORDS)} | {"<unk>": WORDS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
