"""``workbench convert``: what a user sees, and the mistakes that reach them."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


@pytest.fixture
def broken_model(random_model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A model folder to break."""
    folder = tmp_path / "broken"
    shutil.copytree(random_model_dir(), folder)
    return folder


def test_recipe_and_flags_make_a_checkpoint(
    result_of: Result, random_model_dir: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "r.yaml", tmp_path / "checkpoint"
    recipe.write_text(f"model: {random_model_dir()}\ndtype: float16\nweights: {{kind: int8}}\n")
    result = result_of("convert", "--recipe", recipe, "-o", out, "--dtype", "bfloat16", "--max-batch-size", "2")
    assert result["replaced"] == ["--dtype bfloat16 replaces float16 of r.yaml"]
    assert result["recipe"]["dtype"] == "bfloat16"
    assert result["recipe"]["build"]["max_batch_size"] == 2
    assert result["disk_bytes"] >= (out / "rank0.safetensors").stat().st_size
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "--dtype bfloat16 replaces float16 of r.yaml"
    assert lines[1].startswith("plan: ")
    assert lines[2].startswith(f"wrote {out}: int8 weights, the rest in bfloat16, ")


def test_an_existing_output_needs_force(
    result_of: Result, refused: Refused, random_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    words = ("convert", "--model_dir", random_model_dir(), "-o", tmp_path / "checkpoint")
    result_of(*words)
    assert "exists; add --force to replace it, or give another output" in refused(*words)
    result_of(*words, "--force")


def test_no_model(refused: Refused, tmp_path: Path) -> None:
    told = refused("convert", "-o", tmp_path / "x")
    assert "no model is named; give --model_dir, or 'model:' in the recipe" in told


def test_missing_folder(refused: Refused, tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'} is not a folder" in refused(
        "convert", "--model_dir", tmp_path / "none", "-o", tmp_path / "x"
    )


def test_empty_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = refused("convert", "--model_dir", tmp_path / "empty", "-o", tmp_path / "x")
    assert f"{tmp_path / 'empty'} is empty; give the folder of a Hugging Face checkpoint" in told


@pytest.mark.parametrize("architectures", [None, ["MambaForCausalLM"]])
def test_architectures(refused: Refused, broken_model: Path, tmp_path: Path, architectures: list[str] | None) -> None:
    path = broken_model / "config.json"
    config = json.loads(path.read_text())
    del config["architectures"]
    path.write_text(json.dumps(config | ({} if architectures is None else {"architectures": architectures})))
    told = refused("convert", "--model_dir", broken_model, "-o", tmp_path / "x")
    assert "architectures" in told
    assert "InternLMForCausalLM" in told
    assert architectures is None or "MambaForCausalLM" in told


def test_truncated_safetensors(refused: Refused, broken_model: Path, tmp_path: Path) -> None:
    path = broken_model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    told = refused("convert", "--model_dir", broken_model, "-o", tmp_path / "x")
    assert "model.safetensors" in told
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_tensor_that_is_missing_or_of_another_shape(
    refused: Refused, broken_model: Path, tmp_path: Path, fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(broken_model / "model.safetensors")
    wrong = tensors.pop(name)
    if fault == "shape":
        tensors[name] = wrong[:-1].contiguous()
    save_file(tensors, broken_model / "model.safetensors")
    told = refused("convert", "--model_dir", broken_model, "-o", tmp_path / "x")
    assert name in told
    if fault == "shape":
        assert str(list(wrong.shape)) in told
        assert str([wrong.shape[0] - 1, wrong.shape[1]]) in told
    assert not (tmp_path / "x").exists()


def test_unknown_recipe_key(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("dtpye: float16\n")
    told = refused("convert", "--recipe", tmp_path / "r.yaml", "-o", tmp_path / "x")
    assert "the recipe has the unknown key 'dtpye'" in told
    assert "did you mean 'dtype'?" in told


def test_illegal_combination(refused: Refused, random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    words = ("--model_dir", random_model_dir(), "--keep", "layers.0.mlp.down", "-o", tmp_path / "x")
    assert "weights is not quantized, so there is nothing to keep layers out of" in refused("convert", *words)


def test_disk_too_small(
    refused: Refused, random_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    told = refused("convert", "--model_dir", random_model_dir(), "-o", tmp_path / "x")
    assert "bytes and the disk has 10 free; make room" in told


def test_weights_that_are_not_finite_are_a_warning_in_one_sentence(
    result_of: Result, broken_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(broken_model / "model.safetensors")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken_model / "model.safetensors")
    result_of("convert", "--model_dir", broken_model, "-o", tmp_path / "x", "--dtype", "float32")
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("workbench: warning: ")
    assert name in told
