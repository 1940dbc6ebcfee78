from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.small_sentencepiece import internlm2
from workbench.errors import CheckpointError
from workbench.runtime.tokenizer import check_special_ids, load_tokenizer, offers_chat_template


def test_the_demo_tokenizer_takes_text_there_and_back(demo_tokenizer: Any) -> None:
    text = "First light: naïve café, 3.14!\n"
    ids = demo_tokenizer.encode(text)
    assert ids
    assert demo_tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer folder .*nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_tokenizer_says_which_file_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no tokenizer\.json and no tokenizer\.model; allowed: .*--tokenizer_dir"
    ):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{ not json", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


REMOTE = """
from pathlib import Path

from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    def encode(self, text, **_):
        return [len(text)]
"""


def test_code_of_the_folder_runs_only_when_trusted(
    demo_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(demo_model_dir / "tokenizer.json", folder)
    (folder / "tokenization_own.py").write_text(REMOTE)
    content = {
        "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
        "tokenizer_class": "OwnTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_tokenizer(folder).encode("First light") != [11]
    with pytest.warns(UserWarning, match=r"running the Python code of the tokenizer in .*model, as trust_remote_code"):
        assert load_tokenizer(folder, trust_remote_code=True).encode("First light") == [11]


def test_special_tokens_that_a_model_does_not_have(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(internlm2(tmp_path, eos_token="<|im_end|>"))
    assert tokenizer.eos_token_id == 4
    check_special_ids(tokenizer, 5)
    told = (
        r"eos_token '<\|im_end\|>' has the id 4; allowed: ids of the model's vocabulary, 0 to 3; give the tokenizer of"
    )
    with pytest.raises(CheckpointError, match=told):
        check_special_ids(tokenizer, 4)
    with pytest.raises(CheckpointError, match=r"bos_token '<s>' has the id 1"):
        check_special_ids(tokenizer, 1)


def test_tokenizer_json_comes_before_tokenizer_model(demo_model_dir: Path, tmp_path: Path) -> None:
    folder = internlm2(tmp_path / "model")
    assert len(load_tokenizer(folder)) == 420
    shutil.copy(demo_model_dir / "tokenizer.json", folder)
    assert len(load_tokenizer(folder)) > 40000


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
