"""``tokenizer.model`` folders as InternLM publishes them, without their code: judged by SentencePiece itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.small_sentencepiece import internlm1, internlm2, trained, write_folder
from workbench.errors import CheckpointError
from workbench.runtime.sentencepiece_tokenizer import SentencePieceTokenizer
from workbench.runtime.tokenizer import load_tokenizer, special_ids

TEXTS = [
    "",
    " ",
    "你好，世界。天气",
    "𝄞 emoji 😀👩‍👩‍👧 and ﷽",
    "def f(x):\n\treturn  x + 1\r\n",
    "\x00\x01\x07\x1b[0m\x7f\u200b\u202e\ufeff",
    "  two  spaces   and\n\n\nlines ",
    "e\u0301 is not é",
]


@pytest.fixture(scope="module", params=[internlm1, internlm2], ids=["v1", "v2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(request.param(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_there_and_back(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[1:] == sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model).encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text().filter(lambda text: "▁" not in text))
def test_any_text_there_and_back(text: str) -> None:
    for prefix in (True, False):
        tokenizer = _shared(prefix)
        for split in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split)
            assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<eoh>", "<eoa>", "<s>", "</s>", "<unk>", "[UNUSED_TOKEN_1]", " ", "a", "<", "eoa>"])
    )
)
def test_no_mere_text_becomes_a_special_token(parts: list[str]) -> None:
    text = "".join(parts)
    for prefix in (True, False):
        tokenizer = _shared(prefix)
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


_SHARED: dict[bool, SentencePieceTokenizer] = {}


def _shared(prefix: bool) -> SentencePieceTokenizer:
    if prefix not in _SHARED:
        _SHARED[prefix] = SentencePieceTokenizer(trained(prefix=prefix, symbols=("<eoh>", "<eoa>"), reserved=3))
    return _SHARED[prefix]


def test_symbols_of_v1_are_found_in_a_text_as_the_model_does(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(internlm1(tmp_path))
    text = "<|User|>:Who are you?<eoh>\n<|Bot|>:"
    ids = tokenizer.encode(text, add_special_tokens=False)
    own = sentencepiece.SentencePieceProcessor(model_proto=(tmp_path / "tokenizer.model").read_bytes())
    assert ids == own.encode(text)
    assert ids.count(3) == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("<eoh>", "")
    assert special_ids(tokenizer) == {"<unk>": 0, "<s>": 1, "</s>": 2, "<eoh>": 3, "<eoa>": 4}


def test_names_of_v2_take_the_place_of_the_models(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(internlm2(tmp_path))
    ids = tokenizer.encode("<|im_start|>user\nWho are you?<|im_end|>\n", add_special_tokens=False)
    assert (ids[0], ids.count(4), ids.count(5)) == (5, 1, 1)
    assert tokenizer.decode(ids) == "<|im_start|>user\nWho are you?<|im_end|>\n"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nWho are you?\n"
    # What the model calls the same ids is no way to them.
    assert not {3, 4, 5} & set(tokenizer.encode("[UNUSED_TOKEN_2]", split_special_tokens=True))
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == 5  # type: ignore[attr-defined]


def test_added_tokens_beyond_the_model(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        trained(prefix=True),
        added_tokens={"<extra>": 420, "<tool>": 421},
        special_tokens_map={"additional_special_tokens": [{"content": "<tool>"}, "<nowhere>"]},
    )
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a<extra> b<tool>c", add_special_tokens=False)
    assert (ids.count(420), ids.count(421), len(tokenizer)) == (1, 1, 422)
    assert tokenizer.decode(ids) == "a<extra> b<tool>c"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<extra> bc"


def test_ids_of_a_padded_vocabulary_are_no_text(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("fox"), 500, 10**6], skip_special_tokens=True) == "fox"
    assert tokenizer.decode(2) == "</s>"


def test_bos_and_eos_as_the_folder_wants_them(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(internlm2(tmp_path, add_bos_token=False, add_eos_token=True))
    ids = tokenizer.encode("fox")
    assert (ids[0] == 1, ids[-1]) == (False, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id) == ("<s>", "</s>", 2)


def test_a_character_cut_in_two_is_held_back(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("a😀", add_special_tokens=False)
    assert tokenizer.decode(ids[:-1]).endswith("\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1])
def test_a_broken_model_is_refused_in_one_sentence(tmp_path: Path, cut: int) -> None:
    model = trained(prefix=False)
    (tmp_path / "tokenizer.model").write_bytes(model[:cut] if cut >= 0 else b"<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read \(.+\); copy it again") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder.x is {}; allowed: ids as keys"),
        ("tokenizer_config", {"added_tokens_decoder": {"3": {}}}, r"decoder\.3\.content is nothing; allowed: a text"),
        ("tokenizer_config", {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]; allowed: an object"),
        ("tokenizer_config", {"bos_token": 1}, "bos_token is 1; allowed: the text of a token"),
        ("tokenizer_config", {"add_bos_token": "yes"}, "add_bos_token is 'yes'; allowed: true or false"),
        ("tokenizer_config", {"chat_template": 5}, "chat_template is 5; allowed: a text"),
        ("special_tokens_map", {"additional_special_tokens": "<a>"}, "tokens is '<a>'; allowed: a list of tokens"),
        ("special_tokens_map", {"extra_special_tokens": [""]}, r"tokens is \[''\]; allowed: the text of a token"),
        ("added_tokens", {"<a>": -1}, "<a> is -1; allowed: a whole number from 0"),
        ("added_tokens", [], "added_tokens.json holds a list; allowed: a JSON object"),
    ],
)
def test_wrong_files(tmp_path: Path, file: str, content: Any, message: str) -> None:
    folder = write_folder(tmp_path, trained(prefix=False), **{file: content})
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_a_role_without_an_id_is_refused(tmp_path: Path, role: str) -> None:
    folder = internlm2(tmp_path, **{role: "<|nowhere|>"})
    with pytest.raises(CheckpointError) as raised:
        load_tokenizer(folder)
    told = f"{role} is '<|nowhere|>', which has no id; allowed: a token of tokenizer.model, added_tokens.json or"
    assert told in str(raised.value)


def test_a_template_may_lie_in_a_file_or_among_several(tmp_path: Path) -> None:
    several = [{"name": "tool", "template": "b"}, {"name": "default", "template": "a"}]
    folder = internlm2(tmp_path, chat_template=several)
    assert load_tokenizer(folder).chat_template == "a"
    (folder / "chat_template.jinja").write_text("c")
    assert load_tokenizer(folder).chat_template == "c"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is no text"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").unlink()
    content = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    assert load_tokenizer(folder).chat_template is None
