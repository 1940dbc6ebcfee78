"""``workbench build``: an engine that runs on, and refusals."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.cli.amounts import size
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


def test_the_evidence_of_a_failed_check_is_in_the_json(
    tiny_checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.engine import check

    monkeypatch.setattr(check, "RATIO", 0.0)
    monkeypatch.setattr(check, "NOISE_FLOOR", 0.0)
    words = ["--checkpoint_dir", str(tiny_checkpoint_dir), "--output_dir", str(tmp_path / "engine")]
    assert main(["build", *words, "--verify", "sample", "--json", str(tmp_path / "x.json")]) == 1
    error = json.loads((tmp_path / "x.json").read_text())["error"]
    assert error["kind"] == "GateError"
    failed = error["details"]["failed"]
    assert f"differs from the model at {len(failed)} taps, first at {failed[0]['tap']}" in error["message"]
    assert set(failed[0]) == {"tap", "torch_error", "network_error", "ratio", "passed"}
    assert error["details"]["taps"] >= len(failed)
    assert error["details"]["sampled"] is True


def test_linear_layers_compiled_otherwise_than_asked_are_named(
    tiny_checkpoint_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    result_of: Result,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from workbench.engine import build

    compiled_linears = build.compiled_linears

    def otherwise(*given: Any) -> Any:
        found = compiled_linears(*given)
        found["layers.0.attention.o"] = dataclasses.replace(found["layers.0.attention.o"], precisions={0: "expanded"})
        found["layers.1.mlp.down"] = dataclasses.replace(found["layers.1.mlp.down"], precisions={0: "expanded"})
        found["lm_head"] = dataclasses.replace(found["lm_head"], precisions={0: "unknown"})
        return found

    monkeypatch.setattr(build, "compiled_linears", otherwise)
    words = ("--checkpoint_dir", tiny_checkpoint_dir, "--output_dir", tmp_path / "engine", "--verify", "off")
    result = result_of("build", *words)
    assert [row["linear"] for row in result["deviations"]] == ["layers.0.attention.o", "layers.1.mlp.down", "lm_head"]
    assert {row["compiled"] for row in result["deviations"]} == {"expanded", "unknown"}
    assert capsys.readouterr().err == (
        "workbench: warning: fp32 was asked for, expanded was compiled: layers.0.attention.o, layers.1.mlp.down\n"
        "workbench: warning: fp32 was asked for, unknown was compiled: lm_head\n"
    )


def test_the_needs_are_told_first(
    tiny_checkpoint_dir: Path, tmp_path: Path, result_of: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--checkpoint_dir", tiny_checkpoint_dir, "--output_dir", tmp_path / "engine", "--verify", "off")
    result = result_of("build", *words)
    assert capsys.readouterr().out.startswith(
        f"plan: needs {size(result['needed_disk_bytes'])} on disk and about {size(result['needed_memory_bytes'])} of "
        "memory\n"
    )
    weights = sum(path.stat().st_size for path in tiny_checkpoint_dir.glob("*.safetensors"))
    assert weights < result["needed_disk_bytes"] < weights + 10_000_000


def test_the_model_s_path_in_a_recipe_does_not_matter(
    tiny_checkpoint_dir: Path, tmp_path: Path, result_of: Result
) -> None:
    from workbench.checkpoint.unified import load_checkpoint

    path = tmp_path / "r.yaml"
    path.write_text("model: ./another/spelling\ndtype: float32\n")
    words = ("--checkpoint_dir", tiny_checkpoint_dir, "--output_dir", tmp_path / "engine", "--verify", "off")
    result = result_of("build", *words, "--recipe", path)
    assert result["recipe"]["model"] == load_checkpoint(tiny_checkpoint_dir).recipe.model


# ---- from a model or a calibrated checkpoint


@pytest.fixture(scope="module")
def tiny_calibrated(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the ranges of keys and values, not smoothed."""
    folder = tmp_path_factory.mktemp("tiny")
    assert main(["convert", "-i", str(tiny_model_dir), "-o", str(folder), "-kv", "--samples=2", "--length=16"]) == 0
    return folder / "1-gpu"


def test_flags_of_the_original_are_explained(
    tiny_model_dir: Path, tmp_path: Path, result_of: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--use_gemm_plugin", "--remove-input-padding", "--rotary_base=10000", "--log_level", "info"]
    words += ["--use_weight_only", "--weight_only_precision", "int4", "--keep", "lm_head", "layers.*.mlp.down"]
    result = result_of(
        *("build", "--model_dir", tiny_model_dir, "--output_dir", tmp_path / "engine", "--verify", "off", *words)
    )
    told = capsys.readouterr().out.splitlines()
    assert result["notes"] == told[: len(result["notes"])]
    assert result["notes"] == [
        "--weight_only_precision int4: groups of 128; the original's one scale per channel is --group_size 0",
        "--use_gemm_plugin: TensorRT's own GEMM: there are no plugins",
        "--remove_input_padding: not packed: rows are padded on the right, and each row's last token is gathered "
        "before the head",
        "--log_level info: TensorRT's log is read for kernels and errors, and not printed",
        "--rotary_base 10000: read from the model's config.json",
        "max_input_len 384 and max_output_len 128: lowered to the model's 512 positions",
    ]
    assert result["recipe"]["weights"] == {"kind": "int4", "group_size": 128}
    assert result["check"] is None
    # Rows of one group would be expanded by the compiler; they are written as smaller blocks.
    assert result["deviations"] == []


def test_flags_of_the_original_lie_over_a_recipe_file(tiny_model_dir: Path, tmp_path: Path, result_of: Result) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {tiny_model_dir}\nweights: {{kind: int4}}\nbuild: {{max_input_len: 8, targets: [sm86]}}\n")
    words = ("--recipe", path, "--output_dir", tmp_path / "engine", "--verify", "off", "--use_weight_only")
    result = result_of("build", *words, "--max_output_len", "4")
    assert result["replaced"] == result["notes"] == ["--weights int8 replaces int4 of r.yaml"]
    assert result["recipe"]["build"]["max_input_len"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--use_smooth_quant"], "asks for smoothing, which needs ranges, and"),
        (["--int8_kv_cache"], "asks for an INT8 KV cache, which needs ranges, and"),
        (["--use_smooth_quant", "--use_weight_only"], "--use_smooth_quant and --use_weight_only are both given; give"),
        (["--per_token"], "--per_token without --use_smooth_quant; add --use_smooth_quant, or leave --per_token out"),
        (["--weight_only_precision", "int4"], "--weight_only_precision without --use_weight_only; add"),
        (["--use_weight_only", "--weights", "int4"], "--use_weight_only asks for weights int8, another flag for int4"),
        (["--use_smooth_quant", "--per_token", "--sq_activation", "per_tensor"], "--per_token asks for activation"),
        (["--meta_ckpt_dir", "x"], "--meta_ckpt_dir names a checkpoint in the layout of Meta's Llama, and InternLM"),
        (["--world_size", "4", "--tp_size", "2"], "--world_size 4 with --tp_size 2 and --pp_size 1; allowed: tp_size"),
        (["--world_size", "2", "--tp_size", "2"], "an engine of 2 ranks; allowed: one rank: engines of several are"),
        (["--pp_size", "0"], "--pp_size 0; allowed: whole numbers from 1"),
        (["--max_beam_width", "4"], "--max_beam_width 4; allowed: 1: there is no beam search yet"),
        (["--ft_model_dir", "x"], "--ft_model_dir and --model_dir are both given; give one of them"),
        (["--ft_model_dir", "x", "--checkpoint_dir", "y"], "--checkpoint_dir and --ft_model_dir are both given"),
    ],
)
def test_what_cannot_be_built_from_a_model(
    tiny_model_dir: Path, tmp_path: Path, refused: Refused, words: list[str], message: str
) -> None:
    assert message in refused("build", "--model_dir", tiny_model_dir, "--output_dir", tmp_path / "engine", *words)
    assert not (tmp_path / "engine").exists()


def test_smoothquant_of_a_checkpoint_that_was_not_smoothed(
    tiny_calibrated: Path, tmp_path: Path, refused: Refused
) -> None:
    words = ("build", "--ft_model_dir", tiny_calibrated, "--use_smooth_quant", "--output_dir", tmp_path / "engine")
    assert "was calibrated but not smoothed, and SmoothQuant is asked for; convert the model again with -sq" in refused(
        *words
    )


def test_an_int8_cache_of_a_checkpoint_without_ranges(
    tiny_checkpoint_dir: Path, tmp_path: Path, refused: Refused
) -> None:
    words = ("build", "--ft_model_dir", tiny_checkpoint_dir, "--int8_kv_cache", "--output_dir", tmp_path / "engine")
    assert "is a dense checkpoint, and holds no ranges to quantize by; give what 'workbench convert'" in refused(*words)


def test_a_calibrated_checkpoint_without_a_quantization_is_told(
    tiny_calibrated: Path, tmp_path: Path, result_of: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of(
        *("build", "--ft_model_dir", tiny_calibrated, "--output_dir", tmp_path / "engine", "--verify", "off")
    )
    assert f"nothing is quantized: {tiny_calibrated} is calibrated" in capsys.readouterr().out
    assert result["recipe"]["weights"] is None


def test_the_folder_above_a_calibrated_checkpoint_names_the_one_within(
    tiny_calibrated: Path, tmp_path: Path, refused: Refused
) -> None:
    words = ("build", "--ft_model_dir", tiny_calibrated.parent, "--output_dir", tmp_path / "engine")
    assert f"config.json is missing; give {tiny_calibrated}" in refused(*words)
