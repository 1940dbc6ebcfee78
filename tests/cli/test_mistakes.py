"""What people most often do wrong with each command: exit code 2, one sentence that says what to do, nothing left."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]

HF = (
    "M is a Hugging Face model, not a checkpoint of the workbench; convert it first: workbench convert --model_dir M "
    "-o CKPT (build and plan also take the model itself: --model_dir M)"
)
OURS = "is a workbench checkpoint or engine, not a Hugging Face model; give the Hugging Face folder"
ENGINE = "E is an engine, not a checkpoint; give "
RANGES = "R holds the ranges of a calibration, and no checkpoint; make one of the model: workbench convert"
NO_TOKENIZER = "has no tokenizer.json and no tokenizer.model"
# M: a Hugging Face model, C: its checkpoint, E: an engine, R: ranges, F: a text file.
MISTAKES = {
    "demo-model M": "output M is a link; give the folder that it leads to, or another output",
    "demo-model x --format internlm9": "format is 'internlm9'; allowed: internlm, internlm2, internlm3, llama",
    "demo-model x --layer 2": "--layer is no flag; did you mean '--layers'?",
    "plan --checkpoint_dir M": HF,
    "plan --model_dir none": "none does not exist; give the folder of a Hugging Face checkpoint",
    "plan --preset internlm-9b": "did you mean 'internlm-7b'?",
    "calibrate --model_dir none -o x": "none does not exist; give the folder of a Hugging Face checkpoint",
    "calibrate --model_dir C -o x": f"C {OURS}",
    "calibrate --model_dir M/config.json -o x": "config.json is a file; give the folder of a Hugging Face checkpoint",
    "calibrate --model_dir M -o x --text none.txt": "text file none.txt does not exist; give the path of a text, jsonl",
    "calibrate --model_dir M -o x --dataset F": "F is a file, not a dataset; 'calibrate' and 'convert' read it as",
    "calibrate --model_dir M -o x --length 90000": "ask for a smaller --length and fewer --samples, or give more text",
    "calibrate --model_dir M -o x --device gpu": "device 'gpu'; allowed: cpu, cuda, cuda:N",
    "convert --model_dir C -o x": f"C {OURS}",
    "convert --model_dir E -o x": f"E {OURS}",
    "convert --model_dir none -o x": "none does not exist; give the folder of a Hugging Face checkpoint",
    "convert --model_dir M -o x --weights int5": "--weights int5; allowed: none, int8, int4, smoothquant; did you",
    "convert --model_dir M -o x --kv_cache int4": "--kv_cache int4; allowed: none, int8; did you mean 'int8'?",
    "convert --model_dir M -o x --weights smoothquant --ranges M": "ranges.safetensors is missing; make it with",
    "convert --model_dir M -o x --recipe none.yaml": "recipe none.yaml is not a file; give the path of a YAML file",
    "convert --model_dir M -o F": "output F exists and is no checkpoint that this command wrote; give another output",
    "convert --model_dir M -o F --force": "output F exists and is no checkpoint that this command wrote; give another",
    "convert --model_dir M -o M": "output M is what it would be made from; give another output",
    "convert --model_dir M -o M --force": "output M is what it would be made from; give another output",
    "convert --model_dir M -o F/x": "F cannot be written to; give an output in a folder of yours",
    "build --checkpoint_dir M --output_dir x": HF,
    "build --checkpoint_dir E --output_dir x": ENGINE,
    "build --checkpoint_dir R --output_dir x": RANGES,
    "build --model_dir C --output_dir x": f"C {OURS}",
    "build --checkpoint_dir none --output_dir x": "none does not exist; give a folder that 'workbench convert' wrote",
    "build --checkpoint_dir C --output_dir C": "output C is what it would be made from; give another output",
    "build --model_dir M --output_dir M --force": "output M is what it would be made from; give another output",
    "build --checkpoint_dir C --output_dir F": "output F exists and is no engine that this command wrote; give another",
    "build --checkpoint_dir C --output_dir x --targets sm85": "build.targets is 'sm85'; allowed: sm80",
    "build --checkpoint_dir C --output_dir x --max_input_len 90000": "up to the model's max_position_embeddings 512",
    "run --engine_dir M --tokenizer_dir M --input_text a": "M is neither an engine nor a checkpoint of the workbench",
    "run --engine_dir none --tokenizer_dir M --input_text a": "folder none does not exist",
    "run --engine_dir C/config.json --tokenizer_dir M --input_text a": "config.json is a file; allowed: a folder",
    "run --engine_dir C --tokenizer_dir C --input_text a": NO_TOKENIZER,
    "run --engine_dir C --tokenizer_dir M/config.json --input_text a": "config.json is a file; give the model's folder",
    "run --model_dir M --input_text a": "--model_dir is no flag; convert the model first, workbench convert",
    "run --engine_dir C --tokenizer_dir M --prompt a": "--prompt is no flag; give it as --input_text",
    "run --engine_dir C --tokenizer_dir M --prompts a": "--prompts is no flag; give it as --input_text",
    "run --engine_dir C --tokenizer_dir M --input_text a --temperature hot": "invalid float value: 'hot'",
    "run --engine_dir C --tokenizer_dir M --input_file none.txt": "none.txt does not exist; give the path of a file",
    "summarize --test_trt_llm --engine_dir none --tokenizer_dir M": "folder none does not exist",
    "summarize --test_trt_llm --engine_dir M --tokenizer_dir M": "M is neither an engine nor a checkpoint of the work",
    "summarize --test_hf --hf_model_dir C": f"C {OURS}",
    "summarize --test_hf --hf_model_dir M --dataset F": "'summarize' reads articles from .jsonl and .parquet",
    "summarize --test_hf --hf_model_dir M --dataset none.jsonl": "none.jsonl does not exist; check the path",
    "summarize --test_trt_llm --checkpoint_dir C": "--checkpoint_dir is no flag; give it as --engine_dir",
    "compare --model_dir M --checkpoint_dir M": HF,
    "compare --model_dir M --checkpoint_dir E": ENGINE,
    "compare --model_dir none --checkpoint_dir C": "none does not exist; give the folder of a Hugging Face checkpoint",
    "compare --model_dir M --checkpoint_dir C --window_len 90000": "ask for fewer or shorter windows",
    "benchmark --model_dir none": "none does not exist; give the folder of a Hugging Face checkpoint",
    "benchmark --model_dir C": f"C {OURS}",
    "benchmark": "no model is named; allowed: --model_dir, or --preset for dummy weights",
    "bild": "'bild' is no command; allowed: demo-model, plan, calibrate, convert, build",
}


@pytest.fixture
def place(
    tiny_model_dir: Path,
    tiny_checkpoint_dir: Path,
    tiny_engine_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with one of each kind, under short names."""
    folder = tmp_path / "place"
    (folder / "R").mkdir(parents=True)
    (folder / "R" / "ranges.safetensors").touch()
    (folder / "F").write_text("A short text.\n")
    for name, target in (("M", tiny_model_dir), ("C", tiny_checkpoint_dir), ("E", tiny_engine_dir)):
        (folder / name).symlink_to(target)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_with_what_to_do(line: str, place: Path, refused: Refused) -> None:
    assert MISTAKES[line] in refused(*shlex.split(line))
    assert {path.name for path in place.iterdir()} == {"M", "C", "E", "R", "F"}
