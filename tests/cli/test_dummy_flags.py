"""Dummy weights on the command line: presets, sizes, what they are beside a model, and what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workbench.cli.main import main
from workbench.engine import needs

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]
SMALL = ("--n_layer", "2", "--n_embd", "128", "--n-head", "4", "--inter_size", "320", "--vocab_size", "512")


@pytest.mark.parametrize(
    "words",
    [
        ("--weights", "int4", "--group_size", "64"),
        ("--weights", "smoothquant", "--sq_activation", "per_tensor", "--kv_cache", "int8"),
        ("-sq", "0.5", "-kv"),
    ],
)
def test_convert_draws_what_it_converts(
    words: tuple[str, ...], tmp_path: Path, result_of: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = result_of("convert", "--preset", "internlm2-7b", "--n_kv_head", "2", *SMALL, *words, "-o", out)
    assert result["recipe"]["model"] == ""
    folder = Path(result["checkpoint_dir"])
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert 0 < written <= 1.1 * result["disk_bytes"]
    told = capsys.readouterr().out
    assert "dummy weights in the sizes of internlm2-7b, n_layer 2, n_embd 128, n_head 4, n_kv_head 2" in told
    assert ("needs ranges: dummies too" in told) == (words[0] == "-sq" or "smoothquant" in words)
    assert main(["run", "--engine_dir", str(folder), "--input_text", "a", "--max_output_len", "1"]) == 2


def test_an_engine_of_dummies_holds_no_weights_and_runs_on_the_cpu(
    tmp_path: Path, demo_model_dir: Path, result_of: Result
) -> None:
    vocab = json.loads((demo_model_dir / "config.json").read_text())["vocab_size"]
    words = (*SMALL[:-1], str(vocab), "--n_positions", "256", "--use_weight_only")
    built = result_of("build", *words, "--output_dir", tmp_path / "engine", "--verify", "off")
    assert built["check"] is None
    assert [path.name for path in (tmp_path / "engine" / "checkpoint").iterdir()] == ["config.json"]
    flags = ("--tokenizer_dir", demo_model_dir, "--max_output_len", "2", "--input_text", "a", "--backend", "cpu")
    run = result_of("run", "--engine_dir", tmp_path / "engine", *flags)
    assert len(run["outputs"]) == 1


def test_a_dummy_checkpoint_can_be_built_again(tmp_path: Path, result_of: Result) -> None:
    words = (*SMALL, "--n_positions", "256", "--targets", "sm86", "--verify", "off")
    result_of("build", *words, "--output_dir", tmp_path / "one")
    again = ("--checkpoint_dir", tmp_path / "one" / "checkpoint", "--output_dir", tmp_path / "two")
    assert result_of("build", *again, "--max_batch_size", "2", "--verify", "full")["check"]["passed"] is True


def test_benchmark_times_dummies(result_of: Result) -> None:
    short = ("--rounds", "1", "--prompt_len", "2", "--decode_tokens", "2", "--prefill_len", "4", "--threads", "1")
    result = result_of("benchmark", *SMALL, "--modes", "bfloat16", *short)
    assert result["model"] == "dummy weights"
    assert len(result["speeds"]) == 2


def test_sizes_beside_a_model_are_its_own(
    tiny_model_dir: Path, tmp_path: Path, result_of: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of("convert", "--model_dir", tiny_model_dir, "-o", tmp_path / "out", "--n_layer", "9")
    assert result["parameters"] < 10_000_000
    assert "--n_layer 9: read from the model's config.json" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["build", "convert", "benchmark", "plan"])
def test_a_preset_beside_a_model_is_refused(
    command: str, tiny_model_dir: Path, tmp_path: Path, refused: Refused
) -> None:
    output = () if command in ("benchmark", "plan") else ("--output_dir", tmp_path / "out")
    told = refused(command, "--model_dir", tiny_model_dir, "--preset", "internlm-7b", *output)
    assert "--preset and --model_dir are both given; give one of them" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "internlm-8b"), "preset 'internlm-8b'; allowed: internlm-7b, internlm-20b, internlm2-1.8b"),
        (("--n_head", "5"), "n_head 5 for n_embd 4096; allowed: divisors that leave an even head width"),
        (("--n_layer", "-1"), "n_layer is -1; allowed: numbers above 0"),
        (("--preset", "internlm-7b", "--hidden_act", "gelu"), "--hidden_act gelu; allowed: silu: every InternLM has"),
        ((), "no model is named; give --model_dir, 'model:' in the recipe, or --preset for dummy weights"),
    ],
)
def test_what_makes_no_model(words: tuple[str, ...], message: str, tmp_path: Path, refused: Refused) -> None:
    assert message in refused("convert", *words, "-o", tmp_path / "out")


def test_benchmark_of_nothing(refused: Refused) -> None:
    assert "no model is named; allowed: --model_dir, or --preset for dummy weights" in refused("benchmark")


def test_fp16_of_a_7b_is_refused_with_the_figures_and_the_way_out(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is named: the sizes of the original's own default."""
    monkeypatch.setattr(needs, "available_bytes", lambda: 13_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000_000_000))
    told = refused("build", "--dtype", "float16", "--output_dir", tmp_path / "engine")
    assert "a build of 14.6 GB of weights (at its peak TensorRT's builder) needs about 16.5 GB of memory" in told
    assert "and 13.0 GB are available; what fits: --weights int4 (" in told
    assert ", or --world_size 2 --tp_size 2 --pp_size 1 (" in told
    assert list(tmp_path.iterdir()) == []


def test_the_memory_can_be_ignored(tmp_path: Path, result_of: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "available_bytes", lambda: 1)
    words = (*SMALL, "--n_positions", "256", "--targets", "sm86", "--verify", "off", "--ignore_memory")
    assert result_of("build", *words, "--output_dir", tmp_path / "engine")["plan_bytes"] > 0
