"""``workbench run``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cli.run import TextStream

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


class Bytes:
    """A tokenizer whose ids are bytes, so that characters are cut in the middle."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve – 模型 🙂!", ""])
def test_a_stream_says_every_character_once_and_whole(text: str) -> None:
    stream = TextStream(Bytes())
    pieces = [stream.add(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert stream.rest() == ""


def test_a_stream_that_ends_inside_a_character_says_so() -> None:
    stream = TextStream(Bytes())
    assert [stream.add(byte) for byte in "a模".encode()[:-1]] == ["a", "", ""]
    assert stream.rest() == "\N{REPLACEMENT CHARACTER}"


def test_one_text_is_streamed(
    result_of: Result, tiny_checkpoint_dir: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "5")
    result = result_of(*words, "--input_text", "Once upon")
    (output,) = result["outputs"]
    assert output["input_text"] == "Once upon"
    assert len(output["output_ids"]) == 5
    told = capsys.readouterr().out
    assert told.startswith(result["reason"] + "\n\nOnce upon\n" + output["output_text"] + "\n")
    assert result["backend"] == "cpu"


def test_several_texts_give_what_each_gives_alone(
    result_of: Result, tiny_checkpoint_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    npy = tmp_path / "ids.bin"
    words = ("run", "--engine_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "6")
    texts = ["One", "Two words and more", "3"]
    together = result_of(*words, "--input-text", *texts, "--output-npy", npy, "--backend", "torch")["outputs"]
    alone = [result_of(*words, "--input_text", text, "--backend", "torch")["outputs"][0] for text in texts]
    assert together == alone
    table = np.load(npy)
    assert table.dtype == np.int64
    assert table.shape[0] == 3
    for row, output in zip(table.tolist(), together, strict=True):
        assert [token for token in row if token != -1] == output["output_ids"]


def test_a_prompt_longer_than_max_input_len(refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "2")
    assert "allowed: up to max_input_len 300" in refused(*words, "--input_text", "word " * 301)


def test_a_batch_above_max_batch_size(refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "2")
    told = refused(*words, "--input_text", "a", "b", "c", "d")
    assert "4 prompts in one batch; allowed: up to max_batch_size 3" in told


def test_an_output_longer_than_max_output_len(
    refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path
) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir)
    assert "max_output_len 64; allowed: 1 to 8" in refused(*words, "--input_text", "a")


def test_a_missing_tokenizer(refused: Refused, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--input_text", "a", "--tokenizer_dir")
    assert f"{tmp_path} has no tokenizer.json" in refused(*words, tmp_path)
    assert f"tokenizer folder {tmp_path / 'none'} does not exist" in refused(*words, tmp_path / "none")


def test_a_folder_of_neither_kind(refused: Refused, tiny_model_dir: Path, tmp_path: Path) -> None:
    words = ("run", "--tokenizer_dir", tiny_model_dir, "--input_text", "a", "--engine_dir")
    assert f"folder {tmp_path / 'none'} does not exist" in refused(*words, tmp_path / "none")
    assert f"{tiny_model_dir} is neither an engine nor a checkpoint of the workbench" in refused(*words, tiny_model_dir)


def test_tensorrt_cannot_run_a_checkpoint(refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--input_text", "a")
    assert "build an engine first" in refused(*words, "--backend", "tensorrt")


def test_one_folder_must_be_given(refused: Refused, tiny_model_dir: Path) -> None:
    told = refused("run", "--tokenizer_dir", tiny_model_dir, "--input_text", "a")
    assert "one of the arguments --engine_dir --checkpoint_dir is required" in told


def test_an_output_file_in_no_folder(refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--input_text", "a")
    told = refused(*words, "--output_npy", tiny_model_dir / "none" / "x.npy")
    assert "the folder of --output_npy" in told
