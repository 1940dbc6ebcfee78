"""``workbench benchmark``: the table; its times are nobody's business here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]
SHORT = ("--rounds", "1", "--prompt_len", "2", "--decode_tokens", "2", "--prefill-len", "4", "--threads", "1")
TINY = ("--n_layer", "1", "--n_embd", "64", "--n_head", "2", "--vocab_size", "64")


def test_every_mode_has_a_line_for_decode_and_prefill(
    result_of: Result, random_model_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of("benchmark", "--model_dir", random_model_dir(), "--modes", "float32", "int8", *SHORT)
    lines = [(speed["mode"], speed["task"], speed["tokens"], speed["hf_dtype"]) for speed in result["speeds"]]
    assert lines == [
        ("float32", "decode", 2, "float32"),
        ("float32", "prefill", 4, "float32"),
        ("int8", "decode", 2, "bfloat16"),
        ("int8", "prefill", 4, "bfloat16"),
    ]
    assert result["options"]["threads"] == 1
    told = capsys.readouterr().out.splitlines()
    assert "1 threads" in told[0]
    assert "times as fast" in told[1]
    assert len(told) == 2 + len(lines)


def test_an_unknown_mode_is_refused(refused: Refused, random_model_dir: Callable[..., Path]) -> None:
    told = refused("benchmark", "--model_dir", random_model_dir(), "--modes", "fp32")
    assert "benchmark mode 'fp32'; allowed: float32, bfloat16, int8, float16" in told


def test_the_defaults_in_the_help_are_the_real_ones() -> None:
    from workbench.cli.benchmark import NUMBERS
    from workbench.evaluation.benchmark import BenchmarkOptions

    options = BenchmarkOptions()
    assert all(f"(default: {getattr(options, name)})" in text for name, text in NUMBERS.items())


def test_the_defaults_in_the_help_are_the_gpus_too() -> None:
    pytest.importorskip("triton", reason="needs triton")
    from workbench.cli.benchmark import COMMAND, GPU_LISTS
    from workbench.evaluation.gpu_benchmark import GPU_MODES, GpuBenchmarkOptions

    options = GpuBenchmarkOptions()
    for name, text in GPU_LISTS.items():
        assert f"(default: {' '.join(map(str, getattr(options, name)))})" in text
    told = " ".join(COMMAND.parser().format_help().split())
    assert f"timed (default: {options.steps})" in told
    assert f"GPU: out of {' '.join(GPU_MODES)} (default: all)" in told


def test_a_preset_is_timed_on_the_cpu_where_there_is_no_gpu(
    result_of: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rounds = ("--rounds", "1", "--prompt_len", "2", "--decode_tokens", "2", "--prefill-len", "4")
    result = result_of("benchmark", "--preset", "internlm2-7b", *TINY, "--modes", "float32", *rounds)
    assert (result["model"], len(result["speeds"])) == ("dummy weights", 2)
    told = capsys.readouterr().out
    assert "dummy weights in the sizes of internlm2-7b, n_layer 1, n_embd 64, n_head 2" in told


@pytest.mark.parametrize("flags", [("--dummy",), ("--steps", "8"), ("--batches", "1"), ("--no_hugging_face",)])
def test_flags_of_the_gpu_without_one_are_refused_before_anything_is_timed(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = refused("benchmark", "--preset", "internlm-7b", *flags)
    assert "a benchmark with random weights, but torch finds no CUDA GPU; use the CPU, or a machine with a GPU" in told


@pytest.mark.parametrize("flags", [("--preset", "internlm-7b"), ("--n_layer", "2"), ("--n_layer", "2", "--dummy")])
def test_a_gpu_without_triton_is_told_what_to_install(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert "Triton is not installed; pip install triton" in refused("benchmark", *flags)


def test_a_flag_of_the_cpu_stays_on_the_cpu(
    result_of: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    result_of("benchmark", *TINY, "--modes", "float32", *SHORT)
    assert "1 threads" in capsys.readouterr().out


def test_a_preset_on_a_gpu_is_timed_in_the_sizes_that_are_asked_for(
    result_of: Result, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton", reason="needs triton")
    from workbench.evaluation import gpu_benchmark
    from workbench.evaluation.gpu_benchmark import GpuBenchmarkOptions, GpuBenchmarkResult, GpuSpeed
    from workbench.model.config import ModelConfig
    from workbench.model.presets import PRESETS, Sizes, resized

    asked: list[ModelConfig] = []

    def timed(name: str, config: ModelConfig, options: GpuBenchmarkOptions, _: object) -> GpuBenchmarkResult:
        asked.append(config)
        speed = GpuSpeed("int4", 1, 128, 2.0, 500.0, 10**9, 0.5, 1e10, 10**9)
        return GpuBenchmarkResult(name, options, "GPU", {}, 3e12, (speed,), ())

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu_benchmark, "gpu_benchmark", timed)
    figure = tmp_path / "roofline.png"
    words = ("--preset", "internlm2-7b", "--n_layer", "2", "--steps", "8", "--modes", "int4", "--roofline", figure)
    result = result_of("benchmark", *words, table=1)
    assert asked == [resized(PRESETS["internlm2-7b"], Sizes(n_layer=2))]
    assert result["model"] == "internlm2-7b, n_layer 2"
    assert (result["options"]["steps"], result["options"]["modes"]) == (8, ["int4"])
    assert figure.stat().st_size > 0


def test_what_is_timed_must_be_said(refused: Refused, random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    nothing = "no model is named; allowed: --model_dir, or --preset for dummy weights"
    assert nothing in refused("benchmark")
    assert nothing in refused("benchmark", "--dummy")
    model = ("--model_dir", random_model_dir())
    assert "--preset and --model_dir are both given" in refused("benchmark", "--preset", "internlm-7b", *model)
    told = refused("benchmark", *model, "--dummy", "--batches", "1")
    assert "--dummy, --batches beside --model_dir, which is timed on the CPU; give --preset in its place" in told
    told = refused("benchmark", "--preset", "internlm-7b", "--dummy", "--threads", "0")
    assert "--threads beside --dummy; these are of the CPU and of a GPU: give those of one" in told
    told = refused("benchmark", "--preset", "internlm-8b", "--dummy")
    assert "preset 'internlm-8b'; allowed: internlm-7b, internlm-20b, internlm2-1.8b, internlm2-7b" in told
    assert "did you mean 'internlm" in told
    told = refused("benchmark", "--preset", "internlm-7b", "--dummy", "--roofline", tmp_path)
    assert f"--roofline {tmp_path} is a folder" in told
