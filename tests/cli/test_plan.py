"""``workbench plan``: the tables, the JSON file, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


def test_a_preset_in_every_mode(
    result_of: Result, documented_keys: Callable[[str], set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of("plan", "--preset", "internlm-7b")
    assert set(result) == documented_keys("plan")
    assert result["parameters"] == 7_321_948_160
    assert [mode["name"] for mode in result["modes"]][:2] == ["float16", "int8"]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "max_input_len 1536 and max_output_len 512: lowered to the model's 2048 positions"
    assert told[1].startswith("InternLMForCausalLM, 7.3 billion parameters: 32 layers, hidden 4096, 32 heads (32 key/")
    assert told[2] == "limits: batch 8, 1536 + 512 tokens"
    (row,) = [line for line in told if line.startswith("int4 group 128")]
    assert row.split()[3:7] == ["5.0", "GB", "524.3", "kB"]
    assert len({len(line) for line in told if line.startswith(("mode", "float16", "int"))}) == 1


def test_what_an_int8_cache_saves_on_the_cpu_can_be_followed(
    result_of: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "run on CPU: a KV cache that is not INT8 is held in float32, the fastest to read there: "
    modes = {mode["name"]: mode["run"] for mode in result_of("plan", "--preset", "internlm-7b")["modes"]}
    assert note + "1.0 MB a token, 17.2 GB for 16,384 tokens\n" in capsys.readouterr().out
    wide, narrow = modes["int8"], modes["int8 + int8 KV"]
    saved = wide["cpu_kv_bytes_per_token"] - narrow["cpu_kv_bytes_per_token"]
    assert wide["cpu_bytes"] - narrow["cpu_bytes"] == 16_384 * saved == 16_384 * 3 * narrow["kv_bytes_per_token"]
    for same in (("--weights", "int8", "--kv_cache", "int8"), ("--weights", "none", "--dtype", "float32")):
        result_of("plan", "--preset", "internlm-7b", *same)
        assert "run on CPU: " not in capsys.readouterr().out


def test_choices_that_give_way_are_told(
    result_of: Result, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("weights: {kind: int8}\n")
    result = result_of("plan", "--model_dir", tiny_model_dir, "--recipe", recipe, "--weights", "int4")
    notes = [
        "--weights int4 replaces int8 of mine.yaml",
        "max_input_len 384 and max_output_len 128: lowered to the model's 512 positions",
    ]
    assert capsys.readouterr().out.splitlines()[:2] == result["notes"] == notes
    result_of("plan", "--preset", "internlm2-7b")
    assert "lowered" not in capsys.readouterr().out


def test_who_names_a_quantization_gets_that_one(result_of: Result, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of("plan", "--preset", "internlm2-20b", "--weights", "int4", "--tp_size", "2", "--pp-size", "2")
    (mode,) = result["modes"]
    assert mode["name"] == "int4 group 128"
    assert len(mode["rank_bytes"]) == 4
    assert "ranks: 4 (tp_size 2 x pp_size 2)" in capsys.readouterr().out


def test_a_models_folder_and_its_limits(tiny_model_dir: Path, result_of: Result) -> None:
    result = result_of("plan", "--model_dir", tiny_model_dir, "--max_batch_size", "2")
    limits = result["modes"][0]["recipe"]["build"]
    assert (limits["max_batch_size"], limits["max_input_len"], limits["max_output_len"]) == (2, 384, 128)


def test_a_checkpoint_in_its_own_mode(
    tiny_checkpoint_dir: Path, result_of: Result, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of("plan", "--checkpoint_dir", tiny_checkpoint_dir, "--max_batch_size", "1")
    (mode,) = result["modes"]
    assert (mode["name"], mode["convert_disk_bytes"], mode["recipe"]["build"]["max_batch_size"]) == ("float32", None, 1)
    assert "done" in capsys.readouterr().out
    told = refused("plan", "--checkpoint_dir", tiny_checkpoint_dir, "--weights", "int8")
    assert "--checkpoint_dir beside a choice of weights; allowed: limits, such as --max_batch_size" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model is named; allowed: --preset, --model_dir or --checkpoint_dir"),
        (["--preset", "internlm-7b", "--tp_size", "0"], "--tp_size 0; allowed: whole numbers from 1"),
        (["--preset", "internlm-7b", "--tp_size", "3"], "32 query heads over tp_size 3; allowed: divisors of 32"),
        (["--preset", "internlm-7b", "--pp_size", "33"], "32 layers over pp_size 33"),
        (["--preset", "internlm-7b", "--checkpoint_dir", "x"], "--preset and --checkpoint_dir are both given"),
        (["--preset", "internlm-7b", "--model_dir", "x"], "--preset and --model_dir are both given"),
        (["--preset", "internlm-7b", "--hidden_act", "gelu"], "--hidden_act gelu; allowed: silu"),
    ],
)
def test_what_cannot_be_planned(words: list[str], message: str, refused: Refused) -> None:
    assert message in refused("plan", *words)
