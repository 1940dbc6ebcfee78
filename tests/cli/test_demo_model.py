"""``workbench demo-model``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]
TINY = ("--random", "--layers", "1", "--hidden", "16", "--heads", "2", "--intermediate", "24", "--vocab", "31")


def test_a_random_model_has_the_sizes_asked_for(
    result_of: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    result = result_of("demo-model", out, *TINY, "--kv-heads", "1", "--no_bias", "--dtype", "float16")
    assert (result["model_dir"], result["random"], result["written"]) == (str(out), True, True)
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (1, 16, 31)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["bias"]) == (2, 1, False)
    assert f"wrote a random model to {out} in " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["internlm2", "internlm3", "llama"])
def test_a_random_model_of_another_version(result_of: Result, tmp_path: Path, name: str) -> None:
    out = tmp_path / "model"
    assert result_of("demo-model", out, *TINY, "--format", name, "--bias", "--tied")["format"] == name
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["tie_word_embeddings"]) == (name, True)
    assert True in (config.get("bias"), config.get("attention_bias"))


def test_an_unknown_format(refused: Refused, tmp_path: Path) -> None:
    for words in (TINY, ()):
        told = refused("demo-model", tmp_path / "model", *words, "--format", "internlm4")
        assert "format is 'internlm4'; allowed: internlm, internlm2, internlm3, llama" in told


def test_a_demo_model_of_another_version_is_not_replaced(refused: Refused, demo_model_dir: Path) -> None:
    told = refused("demo-model", demo_model_dir, "--format", "internlm2")
    assert f"{demo_model_dir} holds the demo model in the format internlm; give another folder for internlm2" in told


def test_a_complete_demo_model_is_left_as_it_is(
    result_of: Result, demo_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result_of("demo-model", demo_model_dir)["written"] is False
    assert capsys.readouterr().out == f"{demo_model_dir} already holds the demo model\n"


def test_an_existing_output_needs_force(result_of: Result, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "model"
    result_of("demo-model", out, *TINY)
    assert f"output {out} exists; add --force to replace it" in refused("demo-model", out, *TINY)
    result_of("demo-model", out, *TINY, "--force")


def test_sizes_without_random_are_refused(refused: Refused, tmp_path: Path) -> None:
    told = refused("demo-model", tmp_path / "model", "--layers", "3", "--no_bias")
    assert "--layers, --no_bias without --random; add --random, or leave it out" in told
    assert not (tmp_path / "model").exists()


def test_sizes_that_do_not_fit_are_refused(refused: Refused, tmp_path: Path) -> None:
    assert "kv_heads is 3; allowed: divisors of heads 4" in refused(
        "demo-model", tmp_path / "model", "--random", "--kv_heads", "3"
    )
