"""A tiny model with a real tokenizer, and what the commands make of it; and the words of docs/cli.md."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from workbench.cli.main import main

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture(scope="session")
def tiny_model_dir(
    demo_model_dir: Path, random_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two random layers under the demo model's tokenizer."""
    vocab = json.loads((demo_model_dir / "config.json").read_text())["vocab_size"]
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(random_model_dir(vocab=vocab, max_positions=512), folder)
    for path in demo_model_dir.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float32, for at most 3 prompts of 300 tokens and 8 new ones."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    limits = ["--max_batch_size", "3", "--max_input_len", "300", "--max_output_len", "8", "--targets", "sm86"]
    assert main(["convert", "--model_dir", str(tiny_model_dir), "--dtype", "float32", "-o", str(folder), *limits]) == 0
    return folder


@pytest.fixture
def tiny_engine_dir(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    """An engine folder whose plan no machine can run: it runs on its checkpoint, with the engine's limits."""
    from workbench.checkpoint.unified import load_checkpoint
    from workbench.engine.folder import EngineConfig, write_engine_config

    checkpoint = load_checkpoint(tiny_checkpoint_dir)
    folder = tmp_path / "engine"
    folder.mkdir()
    places = {"checkpoint_dir": tiny_checkpoint_dir, "checkpoint_checksum": checkpoint.checksum}
    config = EngineConfig(folder, "tensorrt_rtx", "0.0.0", ("sm86",), checkpoint.recipe, **places)
    write_engine_config(folder, config, {})
    return folder


@pytest.fixture(scope="session")
def documented_keys() -> Callable[[str], set[str]]:
    """``documented_keys("run")``: the keys of a command's result that docs/cli.md lists."""
    return _documented_keys


@pytest.fixture
def result_of(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``result_of("run", ..., exit_code=0)``: runs a command and gives the result in its JSON file, checked.

    ``table`` says which of the command's tables of keys in docs/cli.md it must have, counted from 0.
    """

    def run(*words: str | Path, exit_code: int = 0, table: int = 0) -> dict[str, Any]:
        path = tmp_path / "outcome.json"
        assert main([*map(str, words), "--json", str(path)]) == exit_code
        content = json.loads(path.read_text())
        result: dict[str, Any] = content["result"]
        assert set(result) == _documented_keys(str(words[0]), table)
        return result

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused("run", ...)``: runs a command that must end with exit code 2, and gives its one sentence."""

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        assert main(list(map(str, words))) == 2
        told = capsys.readouterr().err
        assert told.startswith("workbench: error: ")
        assert told.count("\n") == 1
        return told

    return run


def _documented_keys(command: str, table: int = 0) -> set[str]:
    """The keys of a command's result, as its section of docs/cli.md lists them."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"## workbench {command}\n")[1].split("\n## ")[0]
    rows = section.split("| key of `result` | meaning |\n")[1 + table].splitlines()[1:]
    rows = list(takewhile(lambda row: row.startswith("|"), rows))
    return {key for row in rows for key in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1])}
