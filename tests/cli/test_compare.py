"""``workbench compare``: the table, the files, the gate."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from workbench.cli.main import main

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]
SHORT = ("--windows", "2", "--window_len", "16")


def test_the_same_model_passes(
    result_of: Result,
    tiny_model_dir: Path,
    tiny_checkpoint_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {name: tmp_path / f"layers.{name}" for name in ("csv", "parquet", "png")}
    words = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    result = result_of(
        "compare", "--model_dir", tiny_model_dir, "--checkpoint_dir", tiny_checkpoint_dir, *SHORT, *words, "--float64"
    )
    assert result["summary"]["same_model"] is True
    assert result["first_divergence"] is None
    assert result["tokens"] == 32
    assert len(result["text_sha256"]) == 64
    assert "float64" in result["verdict"]
    table = pd.read_csv(files["csv"])
    assert list(table["tap"]) == [tap["tap"] for tap in result["taps"]]
    assert list(pd.read_parquet(files["parquet"])["tap"]) == list(table["tap"])
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "relative L2 error of ours (float32) against Hugging Face float32:" in told
    assert "no single tap diverges (relative L2 above 0.0001, the limit of float32)" in told
    assert "not compared" not in told
    assert result["left_out"] == []
    assert "gate 'same model': passed" in told


def test_another_model_fails_the_gate(
    result_of: Result,
    tiny_model_dir: Path,
    random_model_dir: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = random_model_dir(vocab=49152, max_positions=512, seed=1)
    checkpoint = tmp_path / "other"
    assert main(["convert", "--model_dir", str(other), "--dtype", "float32", "-o", str(checkpoint)]) == 0
    words = ("compare", "--model_dir", tiny_model_dir, "--checkpoint_dir", checkpoint, *SHORT)
    result = result_of(*words, exit_code=1)
    assert result["summary"]["same_model"] is False
    assert result["first_divergence"] == "embedding"
    told = capsys.readouterr().out
    assert "first diverging tap: embedding (relative L2 above 0.0001, the limit of float32)" in told
    assert "gate 'same model': FAILED: cosine p5 is " in told


def test_what_smoothing_rescales_is_named(
    result_of: Result, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranges, checkpoint = tmp_path / "ranges", tmp_path / "smooth"
    model = ("--model_dir", str(tiny_model_dir))
    few = ("--samples", "1", "--length", "16", "--tune_samples", "1", "--rows", "4")
    assert main(["calibrate", *model, "-o", str(ranges), *few]) == 0
    smoothed = ("--weights", "smoothquant", "--groups", "qkv", "down", "--ranges", str(ranges))
    assert main(["convert", *model, *smoothed, "-o", str(checkpoint)]) == 0
    result = result_of("compare", *model, "--checkpoint_dir", checkpoint, *SHORT)
    assert result["left_out"] == ["attention_norm", "mlp.gate_up", "mlp.act"]
    assert not set(result["left_out"]) & {tap["site"] for tap in result["taps"]}
    told = capsys.readouterr().out
    assert "\nnot compared, since smoothing rescales them: attention_norm, mlp.gate_up, mlp.act\n" in told


def test_a_text_of_ones_own(
    result_of: Result, refused: Refused, tiny_model_dir: Path, tiny_checkpoint_dir: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    words = ("compare", "--model_dir", tiny_model_dir, "--checkpoint_dir", tiny_checkpoint_dir, *SHORT, "--text", text)
    assert "cannot be read (No such file or directory); give a text file in UTF-8" in refused(*words)
    text.write_text("too short")
    assert "but 2 windows of 16 need 32; give a longer text" in refused(*words)
    text.write_bytes(b"\xff\xfe")
    assert "cannot be read (it is not UTF-8)" in refused(*words)
    text.write_text("A sentence about models. " * 20)
    assert result_of(*words)["windows"] == 2


def test_a_file_that_cannot_be_written_is_refused_before_any_work(refused: Refused, tmp_path: Path) -> None:
    words = ("compare", "--model_dir", tmp_path, "--checkpoint_dir", tmp_path)
    assert "allowed: a file named *.csv" in refused(*words, "--csv", tmp_path / "x.txt")
    assert f"the folder {tmp_path / 'no'} does not exist" in refused(*words, "--png", tmp_path / "no" / "x.png")
    for name in ("csv", "parquet", "png", "json"):
        assert f"--{name} {tmp_path} is a folder; give the path of a file" in refused(*words, f"--{name}", tmp_path)


def test_an_engine_is_refused_with_the_checkpoint_that_it_was_built_from(
    refused: Refused, tiny_model_dir: Path, tiny_engine_dir: Path, tiny_checkpoint_dir: Path, tmp_path: Path
) -> None:
    words = ("compare", "--model_dir", tiny_model_dir, "--checkpoint_dir")
    told = f"is an engine, not a checkpoint; give {tiny_checkpoint_dir}, which it was built from\n"
    assert told in refused(*words, tiny_engine_dir)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "link").symlink_to(tiny_engine_dir)
    assert told in refused(*words, tmp_path / "deep" / "er" / "link")
    config = tiny_engine_dir / "config.json"
    for content in (
        re.sub(r'"path": "[^"]*"', '"path": "gone"', config.read_text()),
        '{"workbench": {"kind": "engine"}}',
    ):
        config.write_text(content)
        gone = (
            "is an engine, not a checkpoint; give the checkpoint that it was built from, or make one: workbench convert"
        )
        assert gone in refused(*words, tiny_engine_dir)


def test_a_tokenizer_from_elsewhere(
    result_of: Result,
    refused: Refused,
    tiny_model_dir: Path,
    random_model_dir: Callable[..., Path],
    tiny_checkpoint_dir: Path,
) -> None:
    bare = random_model_dir(vocab=49152, max_positions=512)
    words = ("compare", "--model_dir", bare, "--checkpoint_dir", tiny_checkpoint_dir, *SHORT)
    assert "give the folder of a complete Hugging Face model, or where the command has it --tokenizer_dir" in refused(
        *words
    )
    assert result_of(*words, "--tokenizer_dir", tiny_model_dir)["summary"]["same_model"] is True


def test_a_checkpoint_of_another_size_is_refused(
    refused: Refused, demo_model_dir: Path, tiny_checkpoint_dir: Path
) -> None:
    told = refused("compare", "--model_dir", demo_model_dir, "--checkpoint_dir", tiny_checkpoint_dir)
    assert "compare a checkpoint with the model that it was converted from" in told
