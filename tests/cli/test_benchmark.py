"""``workbench benchmark``: the table; its times are nobody's business here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.cli.main import main
from workbench.errors import LimitError

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
    from workbench.cli.benchmark import COMMAND
    from workbench.cli.benchmark_gpu import GPU_LISTS
    from workbench.evaluation.gpu_options import GPU_MODES, TUNED_BATCHES, GpuBenchmarkOptions

    options = GpuBenchmarkOptions()
    for name, text in GPU_LISTS.items():
        assert f"(default: {' '.join(map(str, getattr(options, name)))})" in text
    told = " ".join(COMMAND.parser().format_help().split())
    assert f"timed (default: {options.steps})" in told
    prefills = " ".join(f"{batch}x{length}" for batch, length in options.prefills)
    assert f"read at once (default: {prefills}; nothing" in told
    assert f"--batches (default: {' '.join(map(str, TUNED_BATCHES))})" in told
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


@pytest.mark.parametrize(
    "flags",
    [
        ("--dummy",),
        ("--steps", "8"),
        ("--batches", "1"),
        ("--no_hugging_face",),
        ("--prefills",),
        ("--dummy", "--steps", "8"),
    ],
    ids=" ".join,
)
def test_flags_of_the_gpu_without_one_are_refused_before_anything_is_timed(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = refused("benchmark", "--preset", "internlm-7b", *flags)
    assert "a benchmark with random weights needs an NVIDIA GPU, and torch finds no CUDA GPU; " in told
    assert told.endswith(", or use a machine with an NVIDIA GPU\n")


@pytest.mark.parametrize(
    ("flags", "gigabytes", "told"),
    [
        ((), 1000, "internlm-7b --threads 2"),
        ((), None, "internlm-7b --threads 2"),
        (("--n_layer", "2", "--rotary_base", "1e6"), 30, "internlm-7b --n_layer 2 --rotary_base 1000000.0 --threads 2"),
        (("--modes", "int4", "int8"), 1000, "internlm-7b --modes int8 --threads 2"),
        ((), 50, "internlm-7b --modes bfloat16 int8 float16 --threads 2"),
        ((), 24, "internlm2-1.8b --modes float32 bfloat16 int8 float16 --threads 2"),
        ((), 12, "internlm2-1.8b --modes bfloat16 int8 float16 --threads 2"),
        (("--modes", "int8"), 6, "internlm-7b --n_layer 1 --modes int8 --threads 2"),
        ((), 4, "internlm2-1.8b --n_layer 6 --modes bfloat16 --threads 2"),
        (
            ("--n_layer", "2", "--n_positions", "300"),
            1000,
            "internlm-7b --n_layer 2 --n_positions 300 --prefill_len 300 --threads 2",
        ),
        (
            ("--n_layer", "1", "--n_positions", "21"),
            1000,
            "internlm-7b --n_layer 1 --n_positions 21 --prefill_len 21 --prompt_len 10 --decode_tokens 11 --threads 2",
        ),
        ((), 0.1, None),
    ],
)
def test_what_is_named_in_place_of_a_gpu_fits_this_machine(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], gigabytes: float | None, told: str | None
) -> None:
    available = None if gigabytes is None else round(gigabytes * 1e9)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("workbench.evaluation.benchmark.available_bytes", lambda: available)
    said = refused("benchmark", "--preset", "internlm-7b", "--dummy", *flags)
    if told is None:
        assert "; end what else takes memory, of which this machine has too little to time any of it on the" in said
        return
    line = f"workbench benchmark --preset {told}"
    assert f"; what fits the CPU here: {line}, or use a machine" in said

    # Its memory is asked about first: here it is told to fit.
    def fits(*_: object) -> None:
        raise LimitError("it fits")

    monkeypatch.setattr("workbench.evaluation.benchmark._Pair", fits)
    assert "it fits" in refused(*line.split()[1:])


def test_what_is_wrong_on_the_command_line_comes_before_the_missing_gpu(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for flag in ("--dummy", "--tune"):
        told = refused("benchmark", "--preset", "internlm-7b", flag, "--modes", "int3")
        assert "benchmark mode 'int3'; allowed: float16, int8, int4, w8a8, float16+kv8, w8a8+kv8; did you mean" in told
    told = refused("benchmark", "--preset", "internlm-7b", "--tune")
    assert "tuning needs an NVIDIA GPU, and torch finds no CUDA GPU; use a machine with an NVIDIA GPU" in told


def test_an_old_gpu_leaves_the_cpu(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "Old GPU")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: object())
    told = refused("benchmark", "--preset", "internlm-7b")
    assert re.search(r"; what fits the CPU here: workbench benchmark .* --threads 2, or use a newer GPU$", told.strip())


def test_what_fits_is_named_by_its_flags(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.evaluation.benchmark.available_bytes", lambda: 24 * 10**9)
    told = refused("benchmark", "--preset", "internlm-7b", "--threads", "2")
    assert "mode float32 needs about " in told
    fitting = re.search(r"; what fits: --n_layer (\d+)$", told.strip())
    assert fitting is not None
    assert 4 < int(fitting[1]) < 32


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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine whose GPU takes two milliseconds for everything; what it was asked to time."""
    pytest.importorskip("triton", reason="needs triton")
    from workbench.evaluation import gpu_benchmark
    from workbench.evaluation.gpu_results import Conditions, GpuBenchmarkResult, GpuSpeed

    asked: list[dict[str, Any]] = []

    def timed(name: str, config: Any, options: Any, listeners: Any, *, known: Any) -> GpuBenchmarkResult:
        asked.append({"name": name, "config": config, "options": options, "known": known})
        speed = GpuSpeed(options.modes[0], 1, 128, 2.0, 500.0, 10**9, 0.5, 1e10, 10**9)
        conditions = Conditions(name, {}, options.steps, "GPU", {"torch": "2"}, "code")
        result = GpuBenchmarkResult(conditions, {"steps": 8}, 3e12, (speed,), (), "2026-11-30", 60.0)
        if options.steps == 11:
            return replace(result, speeds=(), skipped=("float16 batch 1 context 128: does not fit",))
        listeners.keep(result)
        if options.steps == 12:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if options.steps == 13:
            raise LimitError("an unlucky number of steps")
        return result

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("workbench.backends.kernels.require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(gpu_benchmark, "gpu_benchmark", timed)
    return asked


def test_a_preset_on_a_gpu_is_timed_in_the_sizes_that_are_asked_for(
    result_of: Result, gpu: list[dict[str, Any]], tmp_path: Path
) -> None:
    from workbench.model.presets import PRESETS, Sizes, resized

    figure, tables = tmp_path / "roofline.png", tmp_path / "tables.md"
    words = ("--preset", "internlm2-7b", "--n_layer", "2", "--steps", "8", "--modes", "int4", "--prefills", "2x9")
    result = result_of("benchmark", *words, "--roofline", figure, "--markdown", tables, table=1)
    (asked,) = gpu
    assert asked["config"] == resized(PRESETS["internlm2-7b"], Sizes(n_layer=2))
    assert (result["model"], result["steps"]) == ("internlm2-7b, n_layer 2", 8)
    assert (asked["options"].steps, asked["options"].modes) == (8, ("int4",))
    assert asked["options"].prefills == ((2, 9),)
    assert figure.stat().st_size > 0
    told = tables.read_text().splitlines()[0]
    assert told.startswith(
        "`workbench benchmark --modes int4 --preset internlm2-7b --n_layer 2 --prefills 2x9 --steps 8"
    )


def test_a_run_that_was_stopped_goes_on(
    refused: Refused, gpu: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speeds.json"
    words = ("--preset", "internlm2-1.8b", "--dummy", "--json", str(file), "--resume")
    assert main(["benchmark", *words]) == 0
    assert gpu[0]["known"] is None  # there was no file yet
    assert main(["benchmark", *words]) == 0
    assert [speed.mode for speed in gpu[1]["known"].speeds] == ["float16"]
    assert f"1 cases are in {file} already" in capsys.readouterr().out
    assert json.loads(file.read_text())["exit_code"] == 0
    file.write_text("{}")
    assert "has no result to go on with; give another path, or leave --resume out" in refused("benchmark", *words)
    file.write_text('{"result": {"model": "demo"}}')
    assert "this is no result of a GPU benchmark (" in refused("benchmark", *words)


TINY_GPU = ("benchmark", "--preset", "internlm2-1.8b", "--dummy")
TIMED = {"speeds": [{"mode": "int4"}], "skipped": []}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("steps", "told"), [("12", "the GPU's memory is used up"), ("13", "an unlucky number of steps")]
)
@pytest.mark.parametrize("resume", [True, False])
def test_what_was_timed_before_an_error_stays_and_the_error_is_beside_it(
    refused: Refused, tmp_path: Path, steps: str, told: str, resume: bool
) -> None:
    file = tmp_path / "speeds.json"
    words = (*TINY_GPU, "--json", file, "--steps", steps, *(["--resume"] if resume else []))
    assert told in refused(*words)
    content = json.loads(file.read_text())
    assert [speed["mode"] for speed in content["result"]["speeds"]] == ["float16"]
    assert content["exit_code"] == 2
    assert told in content["error"]["message"]


@pytest.mark.parametrize(
    "wrong", [("--prefills", "0x8"), ("--threads", "2"), ("--n_layer", "0"), ("--steps", "9")], ids=lambda w: w[0]
)
def test_what_is_resumed_stays_whatever_is_wrong(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = tmp_path / "speeds.json"
    file.write_text(json.dumps({"result": TIMED}))
    told = refused(*TINY_GPU, "--json", file, "--resume", *wrong)
    content = json.loads(file.read_text())
    assert content["result"] == TIMED
    assert content["error"]["message"] in told


@pytest.mark.usefixtures("gpu")
def test_a_file_of_an_earlier_run_that_is_not_resumed_has_the_error_alone(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "speeds.json"
    file.write_text(json.dumps({"command": "benchmark", "exit_code": 0, "result": TIMED}))
    told = refused(*TINY_GPU, "--json", file, "--prefills", "0x8")
    content = json.loads(file.read_text())
    assert set(content) == {"command", "version", "exit_code", "error"}
    assert content["error"]["message"] in told


@pytest.mark.usefixtures("gpu")
def test_a_run_in_which_nothing_fits_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = ("--roofline", str(tmp_path / "roofline.png"), "--markdown", str(tmp_path / "tables.md"))
    assert main([*TINY_GPU, "--steps", "11", *files]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "skipped float16 batch 1 context 128: does not fit"
    assert "Not run: float16 batch 1 context 128: does not fit." in (tmp_path / "tables.md").read_text()


@pytest.mark.usefixtures("gpu")
def test_figure_and_tables_appear_together(refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from workbench.evaluation import gpu_markdown

    def broken(*_: object) -> str:
        raise OSError("the disk is full")

    figure, tables = tmp_path / "roofline.png", tmp_path / "tables.md"
    tables.write_text("old")
    monkeypatch.setattr(gpu_markdown, "markdown", broken)
    assert "the disk is full" in refused(*TINY_GPU, "--roofline", figure, "--markdown", tables)
    assert not figure.exists()
    assert tables.read_text() == "old"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--resume",), "--resume without --json; name the file of the run that was stopped: --json FILE"),
        (("--prefills", "8"), "--prefills 8; allowed: prompts x tokens, such as 8x1024"),
        (("--prefills", "0x8"), "benchmark prefill 0x8; allowed: whole numbers from 1"),
        (("--tune", "--steps", "8", "--resume"), "--resume without --json"),
        (("--tune", "--steps", "8"), "--tune beside --steps; tune first, then time without --tune"),
        (("--tune", "--batches", "65"), "--batches 65 beside --tune; allowed: up to 64"),
        (("--tune", "--modes", "int5"), "benchmark mode 'int5'; allowed: float16, int8"),
    ],
)
def test_flags_of_the_gpu_that_mean_nothing(refused: Refused, flags: tuple[str, ...], message: str) -> None:
    assert message in refused("benchmark", "--preset", "internlm2-1.8b", *flags)


@pytest.mark.usefixtures("gpu")
def test_tuning_says_what_was_chosen_and_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from workbench.evaluation import gpu_tuning
    from workbench.evaluation.gpu_tuning import TunedProduct, TuningResult

    asked: list[Any] = []

    def tuned(name: str, _: object, modes: object, batches: object, __: object) -> TuningResult:
        asked.append((name, modes, batches))
        products = (TunedProduct("qkv", "int4 1x2", (1, 2, 3), 5.0, 2e12), TunedProduct("o", "int8", (), 1.0, 1e12))
        return TuningResult(name, "GPU", products)

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_tuning, "tune_model", tuned)
    file = tmp_path / "tiles.out.json"
    words = ["--preset", "internlm2-1.8b", "--tune", "--modes", "int4", "--batches", "1", "8", "--json", str(file)]
    assert main(["benchmark", *words]) == 0
    assert asked == [("internlm2-1.8b", ("int4",), (1, 8))]
    told = capsys.readouterr().out
    assert "1 2 3 5.0   2000.0" in " ".join(told.split()).replace("5.0 2000.0", "5.0   2000.0")
    assert f"remembered in {tmp_path / 'tiles.json'}" in told
    assert json.loads(file.read_text())["result"]["products"][0]["tiles"] == [1, 2, 3]


def test_what_is_timed_must_be_said(refused: Refused, random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    nothing = "no model is named; allowed: --model_dir, or --preset for dummy weights"
    assert nothing in refused("benchmark")
    assert nothing in refused("benchmark", "--dummy")
    model = ("--model_dir", random_model_dir())
    assert "--preset and --model_dir are both given" in refused("benchmark", "--preset", "internlm-7b", *model)
    told = refused("benchmark", *model, "--dummy", "--batches", "1")
    assert "--dummy, --batches beside --model_dir, which is timed on the CPU; give --preset in its place" in told
    told = refused("benchmark", "--preset", "internlm-7b", "--dummy", "--threads", "0")
    assert (
        "--threads beside --dummy; to time on the CPU leave out --dummy; to time on a GPU leave out --threads" in told
    )
    told = refused("benchmark", "--preset", "internlm-8b", "--dummy")
    assert "preset 'internlm-8b'; allowed: internlm-7b, internlm-20b, internlm2-1.8b, internlm2-7b" in told
    assert "did you mean 'internlm" in told
    told = refused("benchmark", "--preset", "internlm-7b", "--dummy", "--roofline", tmp_path)
    assert f"--roofline {tmp_path} is a folder" in told
