"""``workbench calibrate`` on a tiny model: its result, its text flags, its refusals, stopping and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.cli.main import main
from workbench.quantization import calibration, calibration_data
from workbench.quantization.calibration import load_rows
from workbench.quantization.ranges import ActivationRanges

SMALL = (
    "--samples",
    "4",
    "--length",
    "32",
    "--tune_samples",
    "2",
    "--rows",
    "16",
    "--chunk",
    "2",
    "--dtype",
    "float32",
)


def test_the_built_in_text_makes_ranges_and_rows(
    tiny_model_dir: Path, tmp_path: Path, result_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ranges"
    result = result_of("calibrate", "--model_dir", tiny_model_dir, "-o", out, *SMALL)
    assert result["samples"] == 4
    assert result["length"] == 32
    assert result["tokens"] == 128
    assert result["tune_samples"] == 2
    assert result["dtype"] == "float32"
    assert result["dataset"] == "built-in text"
    assert result["model_fingerprint"] == HFCheckpoint.open(tiny_model_dir).fingerprint()
    ranges = ActivationRanges.load(out)
    assert [row["linear"] for row in result["linears"]] == list(ranges.inputs)
    for row in result["linears"]:
        assert list(row["input"]) == list(row["output"]) == ["99", "99.9", "99.99", "100"]
        assert list(row["output"].values()) == sorted(row["output"].values())
        assert row["input"]["100"] == pytest.approx(float(ranges.inputs[row["linear"]].max()))
    assert load_rows(out)("lm_head").shape[0] == 16
    told = capsys.readouterr().out
    assert "saw 128 tokens of built-in text" in told
    assert "largest input: " in told
    assert f"wrote {out}" in told


def test_a_text_file_a_column_and_a_dataset_folder(
    tiny_model_dir: Path, tmp_path: Path, result_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Every good text has words in it, and this one has some more. " * 12
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps({"title": "", "body": text}) for _ in range(2)))
    model = ("--model_dir", tiny_model_dir, *SMALL)
    result = result_of("calibrate", *model, "--text", lines, "--column", "body", "-o", tmp_path / "one")
    assert result["dataset"] == "lines.jsonl"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text(lines.read_text())
    dataset = ("--dataset", folder, "--column", "body", "--dataset_dir", tmp_path / "cache", "--split", "train")
    other = result_of("calibrate", *model, *dataset, "-o", tmp_path / "two")
    assert other["dataset"] == f"{folder}:train:body"
    assert other["text_sha256"] == result["text_sha256"]
    one, two = (ActivationRanges.load(tmp_path / name).tensors() for name in ("one", "two"))
    assert all((tensor == two[name]).all() for name, tensor in one.items())
    capsys.readouterr()
    nothing_left = ("--text", lines, "--column", "body", "--tune_samples", "0", "-o", tmp_path / "three")
    assert result_of("calibrate", *model, *nothing_left)["tune_samples"] == 0
    assert "no rows for tuning" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(out: str) -> list[str]:
        return ["calibrate", "--model_dir", str(tiny_model_dir), "-o", str(tmp_path / out), *SMALL]

    assert main(command("straight")) == 0
    run_chunk, chunks = calibration.LayerWalk.run, []

    def stopped(*args: Any, **named: Any) -> Any:
        chunks.append(args)
        if len(chunks) == 2:
            raise KeyboardInterrupt
        return run_chunk(*args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(calibration.LayerWalk, "run", stopped)
        capsys.readouterr()
        assert main(command("stopped")) == 130
    assert "cancelled; the same command goes on where it was" in capsys.readouterr().err
    assert not (tmp_path / "stopped").exists()
    assert main(command("stopped")) == 0
    for name in ("ranges.safetensors", "rows.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "a", "--text", "b"), "--dataset and --text are both given; give one of them"),
        (("--column", "a"), "--column without a text; give --dataset or --text, too"),
        (("--split", "a"), "--split without a dataset; give --dataset, too"),
        (("--dataset_dir", "a", "--text", "b"), "--dataset_dir without a dataset"),
        (("--text", "none.txt"), "text file none.txt does not exist"),
        (("--dataset", "cnn_dailymail:3.0.0"), "dataset 'cnn_dailymail' cannot be reached"),
        (("--samples", "9999"), "but 9999 were asked for; ask for --samples "),
        (("--samples", "0"), "samples is 0; allowed: whole numbers from 1"),
        (("--length", "513"), "windows of 513 tokens; allowed: up to 512, the model's positions"),
        (("--device", "tpu"), "device 'tpu'; allowed: cpu, cuda, cuda:N"),
        (("--batch", "0"), "calibration batch is 0"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    tiny_model_dir: Path, tmp_path: Path, refused: Callable[..., str], words: tuple[str, ...], message: str
) -> None:
    assert message in refused("calibrate", "--model_dir", tiny_model_dir, "-o", tmp_path / "out", *words)
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_refused_before_any_work(
    tiny_model_dir: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    ranges, strange = tmp_path / "ranges", tmp_path / "strange"
    for folder in (ranges, strange):
        folder.mkdir()
        (folder / "ranges.safetensors").touch()
    # As in a calibrated checkpoint, which is more than its ranges.
    (strange / "config.json").write_text('{"workbench": {"kind": "checkpoint"}}')
    words = ("calibrate", "--model_dir", tiny_model_dir, "-o")
    assert f"output {ranges} exists; add --force" in refused(*words, ranges)
    for force in ((), ("--force",)):
        foreign = f"output {strange} exists and is no folder of a calibration that this command wrote; give another"
        assert foreign in refused(*words, strange, *force)
    assert (strange / "config.json").is_file()


def test_who_is_asked_for_a_dataset_is_told(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("calibrate", "--model_dir", str(tiny_model_dir), "-o", str(tmp_path / "out"), "--dataset")
    monkeypatch.setattr(calibration_data, "_hub_answers", lambda _: False)
    for offline, said in ((False, "asking the hub for some/name\n"), (True, "")):
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
        assert main([*words, "some/name"]) == 2
        told = capsys.readouterr()
        assert told.out == said
        assert "dataset 'some/name' cannot be reached" in told.err
    assert main([*words, str(tmp_path)]) == 2
    assert capsys.readouterr().out == ""


def test_the_output_is_never_what_is_read(tiny_model_dir: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    text = tmp_path / "out" / "text.txt"
    text.parent.mkdir()
    text.write_text("A short text.")
    for force in ((), ("--force",)):
        told = refused("calibrate", "--model_dir", tiny_model_dir, "-o", tiny_model_dir, *force)
        assert f"output {tiny_model_dir} is what it would be made from; give another output" in told
        told = refused("calibrate", "--model_dir", tiny_model_dir, "--text", text, "-o", text.parent, *force)
        assert f"output {text.parent} holds {text}, which it would be made from; give another output" in told
        for dataset in (f"{text.parent}", f"{text.parent}:default"):
            told = refused("calibrate", "--model_dir", tiny_model_dir, "--dataset", dataset, "-o", text.parent, *force)
            assert f"output {text.parent} is what it would be made from" in told
