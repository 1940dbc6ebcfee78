"""Every command on a model of every version: calibrate, convert in every mode, compare, build, run.

The random model is one and the same in every format, so that what the commands find must be, too.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Result = Callable[..., dict[str, Any]]

MODES: dict[str, tuple[str, ...]] = {
    "int8": ("--weights", "int8", "--keep", "lm_head"),
    "int4": ("--weights", "int4", "--keep", "lm_head"),
    "smoothquant with an INT8 KV cache": ("--weights", "smoothquant", "--kv_cache", "int8"),
}
FORMATS = {
    # Without biases the same model in every format; InternLM3's own biases, the MLP's among them, beside it.
    "internlm": {"format": "internlm", "bias": False},
    "internlm2": {"format": "internlm2"},
    "internlm3": {"format": "internlm3"},
    "llama": {"format": "llama"},
    "internlm3 with biases": {"format": "internlm3", "bias": True},
    "llama with a tied head": {"format": "llama", "tied": True},
}

SAME = ("internlm", "internlm2", "internlm3", "llama")


@pytest.fixture(scope="module")
def model_in(
    demo_model_dir: Path, random_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``model_in("internlm2")``: two random layers in a format, under the demo model's tokenizer."""
    vocab = json.loads((demo_model_dir / "config.json").read_text())["vocab_size"]

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("format") / "model"
        shutil.copytree(random_model_dir(vocab=vocab, max_positions=256, kv_heads=2, **FORMATS[name]), folder)
        for path in demo_model_dir.glob("tokenizer*"):
            shutil.copy(path, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def written() -> dict[str, dict[str, bytes]]:
    """Format -> mode -> the tensors that ``convert`` wrote."""
    return {}


@pytest.mark.parametrize("name", FORMATS)
def test_every_mode(
    name: str,
    model_in: Callable[[str], Path],
    written: dict[str, dict[str, bytes]],
    result_of: Result,
    tmp_path: Path,
) -> None:
    model, ranges = model_in(name), tmp_path / "ranges"
    calibration = ("--samples", "2", "--length", "16", "--tune_samples", "0", "--dtype", "float32")
    result_of("calibrate", "--model_dir", model, "-o", ranges, *calibration)
    written[name] = {}
    for mode, flags in MODES.items():
        checkpoint = tmp_path / mode
        given = ("--ranges", ranges) if "smoothquant" in mode else ()
        made = result_of("convert", "--model_dir", model, "-o", checkpoint, "--dtype", "float32", *flags, *given)
        assert made["ignored_tensors"] == []
        written[name][mode] = (checkpoint / "rank0.safetensors").read_bytes()
    compared = ("--checkpoint_dir", tmp_path / "int8", "--windows", "1", "--window_len", "16")
    result_of("compare", "--model_dir", model, *compared)  # exit code 0: the same model
    words = ("--tokenizer_dir", model, "--input_text", "Water boils at", "--max_output_len", "4")
    assert result_of("run", "--checkpoint_dir", tmp_path / "int8", *words)["backend"] == "cpu"
    if name in SAME:
        assert all(written[name] == written[other] for other in SAME if other in written)


@pytest.mark.parametrize("name", ["internlm2", "internlm3 with biases"])
def test_engines(name: str, model_in: Callable[[str], Path], result_of: Result, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not on this platform")
    limits = ("--max_batch_size", "1", "--max_input_len", "8", "--max_output_len", "4", "--targets", "sm86")
    words = ("--output_dir", tmp_path / "engine", "--verify", "full", "--weights", "int8", "--dtype", "float16")
    result = result_of("build", "--model_dir", model_in(name), *words, *limits)
    assert result["check"]["passed"]
