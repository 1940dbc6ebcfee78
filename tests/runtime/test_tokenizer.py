from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.errors import CheckpointError
from workbench.runtime.tokenizer import load_tokenizer


def test_the_demo_tokenizer_takes_text_there_and_back(demo_tokenizer: Any) -> None:
    text = "First light: naïve café, 3.14!\n"
    ids = demo_tokenizer.encode(text)
    assert ids
    assert demo_tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer folder .*nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_tokenizer_says_which_file_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; allowed: .*--tokenizer_dir"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{ not json", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
