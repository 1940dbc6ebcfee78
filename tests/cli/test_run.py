"""``workbench run``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cli.main import main

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


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


def test_several_texts_are_streamed_in_order(
    result_of: Result,
    tiny_checkpoint_dir: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from workbench.runtime.session import TorchSession

    shown: list[str] = []
    decode = TorchSession.decode
    monkeypatch.setattr(TorchSession, "decode", lambda *given: shown.append(capsys.readouterr().out) or decode(*given))
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "4")
    outputs = result_of(*words, "--input_text", "One", "Two")["outputs"]
    first, second = (output["output_text"] for output in outputs)
    shown.append(capsys.readouterr().out)
    assert len(shown) == 4
    assert all(shown)
    assert f"\n[1] One\n{first}\n\n[2] Two\n{second}\n" in "".join(shown)


def test_limits_of_an_engine_hold_on_every_backend(
    refused: Refused, tiny_engine_dir: Path, tiny_model_dir: Path
) -> None:
    words = ("run", "--engine_dir", tiny_engine_dir, "--tokenizer_dir", tiny_model_dir, "--backend", "cpu")
    words = (*words, "--max_output_len", "2", "--input_text")
    assert "allowed: up to max_input_len 300" in refused(*words, "word " * 301)
    assert "4 prompts in one batch; allowed: up to max_batch_size 3" in refused(*words, "a", "b", "c", "d")


def test_the_default_output_is_lowered_to_the_limits_and_a_choice_is_refused(
    result_of: Result,
    refused: Refused,
    tiny_engine_dir: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("run", "--engine_dir", tiny_engine_dir, "--tokenizer_dir", tiny_model_dir, "--backend", "cpu")
    words = (*words, "--input_text", "a")
    assert len(result_of(*words)["outputs"][0]["output_ids"]) == 8
    assert "max_output_len 8: the default 64 lowered to what the limits leave\n" in capsys.readouterr().out
    assert "max_output_len 9; allowed: 1 to 8" in refused(*words, "--max_output_len", "9")
    assert "max_output_len 0; allowed: 1 to 8; ask for at least one" in refused(*words, "--max_output_len", "0")


def test_a_checkpoint_has_only_the_limits_of_its_model(
    result_of: Result, refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path
) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir)
    (output,) = result_of(*words, "--input_text", "word " * 500)["outputs"]
    assert output["input_tokens"] > 300
    assert len(output["output_ids"]) == 512 - output["input_tokens"]
    four = result_of(*words, "--input_text", "a", "b", "c", "d", "--max_output_len", "9")["outputs"]
    assert [len(output["output_ids"]) for output in four] == [9] * 4
    assert "512 together; ask for at most 511 tokens" in refused(*words, "--input_text", "a", "--max_output_len", "512")
    assert "up to the model's max_position_embeddings 512" in refused(*words, "--input_text", "word " * 600)


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


def test_an_output_file_that_cannot_be_written_is_refused_before_any_work(refused: Refused, tmp_path: Path) -> None:
    words = ("run", "--checkpoint_dir", "none", "--tokenizer_dir", "none", "--input_text", "a", "--output_npy")
    assert f"--output_npy {tmp_path} is a folder; give the path of a file" in refused(*words, tmp_path)
    assert f"the folder {tmp_path / 'none'} does not exist" in refused(*words, tmp_path / "none" / "x.npy")


def test_a_full_disk_is_one_sentence(
    tiny_checkpoint_dir: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--checkpoint_dir", str(tiny_checkpoint_dir), "--tokenizer_dir", str(tiny_model_dir)]
    assert main([*words, "--input_text", "a", "--max_output_len", "1", "--output_npy", "/dev/full"]) == 2
    told = capsys.readouterr().err
    assert told == "workbench: error: No space left on device; make room, or write to another disk\n"
