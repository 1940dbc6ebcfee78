"""The command lines of TensorRT-LLM's InternLM example, word for word but for the paths, on a small model.

The original's two scripts beside ``build.py`` are ``workbench convert``, ``run`` and ``summarize``. Outputs lie inside
the model's folder, as they do there. Limits and targets are the defaults; only calibration, summaries and INT4 groups
are made small by more flags.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from workbench.cli.main import main

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not on this platform")

CHAT = "./internlm-chat-7b"
FEW = "--samples 4 --length 32"
SHORT = "--dataset ./articles.jsonl --output_len 4"
ARTICLE = "The council met on Tuesday. It voted for a new bridge over the river, which will be built in spring. " * 3

FP16 = f"""build --model_dir {CHAT}/ --dtype float16 --remove_input_padding --use_gpt_attention_plugin float16
    --enable_context_fmha --use_gemm_plugin float16 --output_dir {CHAT}/trt_engines/fp16/1-gpu/"""
BF16 = f"""build --model_dir {CHAT}/ --dtype bfloat16 --remove_input_padding --use_gpt_attention_plugin bfloat16
    --enable_context_fmha --use_gemm_plugin bfloat16 --output_dir {CHAT}/trt_engines/bf16/1-gpu/"""
WEIGHT_ONLY = f"""build --model_dir {CHAT}/ --dtype float16 --remove_input_padding --use_gpt_attention_plugin float16
    --enable_context_fmha --use_gemm_plugin float16 --use_weight_only
    --output_dir {CHAT}/trt_engines/weight_only/1-gpu/"""
INT4 = f"""build --model_dir {CHAT}/ --dtype float16 --remove_input_padding --use_gpt_attention_plugin float16
    --enable_context_fmha --use_gemm_plugin float16 --use_weight_only --weight_only_precision int4 --group_size 32
    --output_dir {CHAT}/trt_engines/int4/1-gpu/"""
CALIBRATE_KV = f"convert -i {CHAT} -o {CHAT}/smooth_internlm/int8_kv_cache/ --calibrate-kv-cache -t fp16 {FEW}"
INT8_KV = f"""build --ft_model_dir={CHAT}/smooth_internlm/int8_kv_cache/1-gpu/ --dtype float16
    --use_gpt_attention_plugin float16 --use_gemm_plugin float16
    --output_dir {CHAT}/trt_engines/int8_kv_cache_weight_only/1-gpu --int8_kv_cache --use_weight_only"""
SMOOTH = f"""convert -i {CHAT} -o {CHAT}/smooth_internlm/sq0.5/ -sq 0.5 --tensor-parallelism 1
    --storage-type fp16 {FEW}"""
SMOOTH_QUANT = f"""build --ft_model_dir={CHAT}/smooth_internlm/sq0.5/1-gpu/ --use_gpt_attention_plugin float16
    --remove_input_padding --enable_context_fmha --use_smooth_quant --per_token --per_channel
    --output_dir {CHAT}/trt_engines/smoothquant/1-gpu"""
PER_TENSOR = f"""build --ft_model_dir={CHAT}/smooth_internlm/sq0.5/1-gpu/ --use_gpt_attention_plugin float16
    --remove_input_padding --enable_context_fmha --use_smooth_quant
    --output_dir {CHAT}/trt_engines/smoothquant_per_tensor/1-gpu"""

INT8 = {"kind": "int8"}
SMOOTHED = {"kind": "smoothquant", "alpha": 0.5, "groups": ["qkv", "o", "gate_up", "down"], "alpha_by_group": {}}


@dataclass(frozen=True)
class Example:
    """Commands that make an engine, and what its config must say.

    Attributes:
        commands: in their order.
        engine: the folder that they make, below trt_engines.
        dtype, weights, kv_cache: of the recipe in its config.
        compiled: how the linear layers of the decoder were compiled.
    """

    commands: tuple[str, ...]
    engine: str
    dtype: str = "float16"
    weights: dict[str, Any] | None = None
    kv_cache: dict[str, Any] | None = None
    compiled: str = "fp16"


EXAMPLES = [
    Example((FP16,), "fp16"),
    Example((BF16,), "bf16", dtype="bfloat16", compiled="bf16"),
    Example((WEIGHT_ONLY,), "weight_only", weights=INT8, compiled="int8 weight-only, fp16 GEMM"),
    Example((INT4,), "int4", weights={"kind": "int4", "group_size": 32}, compiled="int4 weight-only, fp16 GEMM"),
    Example(
        (CALIBRATE_KV, INT8_KV),
        "int8_kv_cache_weight_only",
        weights=INT8,
        kv_cache={"kind": "int8", "granularity": "per_head", "percentile": 100.0},
        compiled="int8 weight-only, fp16 GEMM",
    ),
    Example(
        (SMOOTH, SMOOTH_QUANT),
        "smoothquant",
        weights=SMOOTHED | {"weight": "per_channel", "activation": "per_token"},
        compiled="int8 x int8",
    ),
    Example(
        (SMOOTH, PER_TENSOR),
        "smoothquant_per_tensor",
        weights=SMOOTHED | {"weight": "per_tensor", "activation": "per_tensor"},
        compiled="int8 x int8",
    ),
]


def command(line: str) -> int:
    """Run one command line of the seed in this process."""
    return main(shlex.split(line))


@pytest.fixture(scope="module")
def workplace(
    demo_model_dir: Path, random_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a two-layer ``internlm-chat-7b`` under the demo model's tokenizer, and three articles."""
    folder = tmp_path_factory.mktemp("seed")
    vocab = json.loads((demo_model_dir / "config.json").read_text())["vocab_size"]
    shutil.copytree(random_model_dir(vocab=vocab, max_positions=2048), folder / "internlm-chat-7b")
    for path in demo_model_dir.glob("tokenizer*"):
        shutil.copy(path, folder / "internlm-chat-7b")
    rows = [{"article": f"{ARTICLE} {number}.", "highlights": "The council wants a bridge."} for number in range(3)]
    (folder / "articles.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.engine)
def test_an_example_builds_runs_and_summarizes(
    example: Example, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    for line in example.commands:
        if not (line is SMOOTH and Path(f"{CHAT}/smooth_internlm/sq0.5/1-gpu").exists()):
            assert command(line) == 0
    told = capsys.readouterr().out
    engine = Path(f"{CHAT}/trt_engines/{example.engine}/1-gpu")
    section = json.loads((engine / "config.json").read_text())["workbench"]
    recipe = section["recipe"]
    assert (recipe["dtype"], recipe["weights"], recipe["kv_cache"]) == (
        *(example.dtype, example.weights, example.kv_cache),
    )
    assert section["build"]["check"]["passed"] is True
    linears = section["build"]["linears"]
    assert {row["compiled"] for row in linears if row["linear"] != "lm_head"} == {example.compiled}
    assert section["checkpoint"]["path"] == "checkpoint"
    assert (recipe["build"]["max_input_len"], recipe["build"]["max_output_len"]) == (1536, 512)
    assert "max_input_len 1536 and max_output_len 512: lowered to the model's 2048 positions" in told
    assert "--use_gpt_attention_plugin" in told
    _runs(engine, capsys)
    _summarizes(engine, capsys)


def _runs(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--max_output_len=120 --input_text 'Tell me about yourself.' --tokenizer_dir {CHAT}/"
    assert command(f"run {words} --engine_dir={engine}/ --backend cpu --json run.json") == 0
    (output,) = json.loads(Path("run.json").read_text())["result"]["outputs"]
    assert 1 <= len(output["output_ids"]) <= 120
    assert "backend cpu on the engine's checkpoint" in capsys.readouterr().out


def _summarizes(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--hf_model_dir {CHAT} --data_type fp16 --engine_dir {engine} {SHORT}"
    assert command(f"summarize --test_trt_llm --test_hf {words} --backend cpu --json summarize.json") == 0
    result = json.loads(Path("summarize.json").read_text())["result"]
    assert result["articles"] == 3
    assert 1 <= result["workbench"]["tokens"] <= 12
    assert 1 <= result["hugging_face"]["tokens"] <= 12
    assert "workbench - Hugging Face" in capsys.readouterr().out


def test_the_two_calibrated_checkpoints_are_that(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    assert command(f"convert -i {CHAT} -o {CHAT}/both -sq 0.5 -kv -t bf16 -tp 1 -p 8 {FEW}") == 0
    config = json.loads(Path(f"{CHAT}/both/1-gpu/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["workbench"]["state"] == "calibrated"
    assert config["workbench"]["smoothing"]["alpha"] == 0.5
    assert Path(f"{CHAT}/both/1-gpu/ranges.safetensors").is_file()


@pytest.mark.parametrize(("tp", "pp", "world"), [(2, 1, 2), (2, 2, 4)])
def test_the_examples_of_several_devices_are_refused_in_words(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tp: int, pp: int, world: int
) -> None:
    monkeypatch.chdir(workplace)
    ranks = f"--world_size {world} --tp_size {tp} --pp_size {pp} --parallel_build"
    assert command(FP16.replace("fp16/1-gpu", "fp16/n-gpu") + f" {ranks}") == 2
    assert f"an engine of {world} ranks; allowed: one rank" in capsys.readouterr().err
    assert not Path(f"{CHAT}/trt_engines/fp16/n-gpu").exists()


SIZES = """--vocab_size 512 --n_layer 2 --n_positions 2048 --n_embd 128 --n_head 4 --n_kv_head 2 --inter_size 320
    --hidden_act silu --rms_norm_eps 1e-6 --rotary_base 10000"""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.engine)
def test_an_example_without_a_checkpoint_builds_dummy_weights(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the original: where no checkpoint is named, an engine of the sizes that the flags give."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(example.commands[-1])
    words = [word for word in words if not word.startswith("--ft_model_dir")]
    if "--model_dir" in words:
        place = words.index("--model_dir")
        del words[place : place + 2]
    assert main([*words, *shlex.split(SIZES)]) == 0
    section = json.loads(Path(f"{CHAT}/trt_engines/{example.engine}/1-gpu/config.json").read_text())["workbench"]
    assert section["recipe"]["dtype"] == example.dtype
    assert section["build"]["check"]["passed"] is True
    linears = section["build"]["linears"]
    assert {row["compiled"] for row in linears if row["linear"] != "lm_head"} == {example.compiled}
    assert "no model is named: dummy weights in the sizes of internlm-7b, n_layer 2" in capsys.readouterr().out
