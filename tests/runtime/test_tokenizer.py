from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.errors import CheckpointError
from workbench.runtime.tokenizer import load_tokenizer, offers_chat_template


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


@pytest.mark.parametrize(
    ("files", "offered"),
    [
        ({}, False),
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": "[1]"}, False),
        ({"tokenizer_config.json": "{ not json"}, False),
        ({"tokenizer_config.json": '{"chat_template": "{{ messages }}"}'}, True),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "{{ messages }}"}, True),
    ],
)
def test_a_chat_template_is_found_without_the_tokenizer(tmp_path: Path, files: dict[str, str], offered: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert offers_chat_template(tmp_path) is offered
