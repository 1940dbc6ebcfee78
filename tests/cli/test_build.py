"""``workbench build``: an engine that runs on, and refusals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.cli.main import main

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not on this platform")

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def tiny_engine(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """A built engine, with what the command wrote as JSON."""
    folder = tmp_path_factory.mktemp("tiny")
    words = ["--checkpoint_dir", str(tiny_checkpoint_dir), "--output_dir", str(folder / "engine"), "--max-batch-size=2"]
    assert main(["build", *words, "--verify", "full", "--json", str(folder / "outcome.json")]) == 0
    content = json.loads((folder / "outcome.json").read_text())
    return argparse.Namespace(folder=folder / "engine", result=content["result"])


def test_the_network_is_checked_and_the_kernels_are_named(
    tiny_engine: argparse.Namespace, documented_keys: Callable[[str], set[str]]
) -> None:
    result = tiny_engine.result
    assert set(result) == documented_keys("build")
    assert result["check"]["passed"] is True
    assert result["targets"] == ["sm86"]
    assert {row["linear"] for row in result["linears"]} > {"layers.0.attention.qkv", "lm_head"}
    assert (tiny_engine.folder / "rank0.engine").stat().st_size == result["plan_bytes"]


def test_an_engine_folder_runs_on_the_cpu_and_says_why(
    tiny_engine: argparse.Namespace, tiny_model_dir: Path, result_of: Result
) -> None:
    words = ("run", "--engine_dir", tiny_engine.folder, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "2")
    result = result_of(*words, "--input_text", "a", "--backend", "cpu")
    assert result["backend"] == "cpu"
    assert result["reason"] == "backend cpu on the engine's checkpoint: as asked"


def test_an_existing_output_needs_force(
    tiny_engine: argparse.Namespace, tiny_checkpoint_dir: Path, refused: Refused
) -> None:
    told = refused("build", "--checkpoint_dir", tiny_checkpoint_dir, "--output_dir", tiny_engine.folder)
    assert "exists; add --force to replace it" in told


def test_what_the_checkpoint_decided_can_only_be_confirmed(
    tiny_checkpoint_dir: Path, refused: Refused, tmp_path: Path
) -> None:
    words = ("build", "--checkpoint_dir", tiny_checkpoint_dir, "--output_dir", tmp_path / "engine")
    told = refused(*words, "--dtype", "float16")
    assert "--dtype (or the recipe's 'dtype') asks for 'float16', but " in told
    assert "was converted with 'float32'; convert again with 'workbench convert', or leave it out" in told
    (tmp_path / "r.yaml").write_text("weights: {kind: int8}\n")
    assert "--weights (or the recipe's 'weights') asks for {'kind': 'int8'}" in refused(
        *words, "--recipe", tmp_path / "r.yaml"
    )
    assert not (tmp_path / "engine").exists()


def test_a_missing_checkpoint(refused: Refused, tmp_path: Path) -> None:
    told = refused("build", "--checkpoint_dir", tmp_path / "none", "--output_dir", tmp_path / "engine")
    assert str(tmp_path / "none") in told


def test_a_network_that_fails_its_check_is_exit_code_1_and_leaves_nothing(
    tiny_checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from workbench.engine import check

    monkeypatch.setattr(check, "RATIO", 0.0)
    monkeypatch.setattr(check, "NOISE_FLOOR", 0.0)
    words = ["--checkpoint_dir", str(tiny_checkpoint_dir), "--output_dir", str(tmp_path / "engine")]
    assert main(["build", *words]) == 1
    assert "the network differs from the model at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
