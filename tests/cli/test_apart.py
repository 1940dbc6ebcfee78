"""Outputs beside inputs: what would be lost is refused before any work, and nothing else is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.cli.apart import require_apart
from workbench.cli.command import UsageError
from workbench.cli.main import load_command, main

Refused = Callable[..., str]
READING = {
    "plan": ("--model_dir", "{model}"),
    "calibrate": ("--model_dir", "{model}", "-o", "ranges"),
    "convert": ("--model_dir", "{model}", "-o", "checkpoint"),
    "build": ("--checkpoint_dir", "{model}", "--output_dir", "engine"),
    "run": ("--checkpoint_dir", "{model}", "--tokenizer_dir", "{model}", "--input_text", "a"),
    "summarize": ("--engine_dir", "{model}", "--hf_model_dir", "{model}"),
    "compare": ("--model_dir", "{model}", "--checkpoint_dir", "{model}"),
    "benchmark": ("--model_dir", "{model}"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a file of a model, one of a result and an empty one."""
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "plot.png").write_text("a picture")
    (folder / "empty.json").touch()
    return folder


def _given(**flags: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"json": None, "png": None, **flags})


@pytest.mark.parametrize("command", READING)
def test_an_outcome_never_takes_the_place_of_what_was_read(
    refused: Refused, tmp_path: Path, model: Path, command: str
) -> None:
    config, recipe = model / "config.json", tmp_path / "r.yaml"
    recipe.write_text("dtype: float16")
    words = [word.format(model=model) for word in READING[command]]
    source = next(word for word in words if word.startswith("--"))
    for output in ("json", *load_command(command).files):
        told = refused(command, *words, f"--{output}", config)
        assert f"--{output} {config} is a file of {source} {model}; give a file of its own" in told
    if command in ("plan", "convert", "build"):
        told = refused(command, *words, "--recipe", recipe, "--json", tmp_path / "." / "r.yaml")
        assert f"--recipe and --json are both {recipe}; give each a file of its own" in told
    assert (config.read_text(), recipe.read_text()) == ("{}", "dtype: float16")


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "--preset", "internlm2-1.8b", "-o", "{out}", "--json", "{out}/config.json"),
        ("build", "--checkpoint_dir", "none", "--output_dir", "{out}", "--force", "--json", "{out}/new.json"),
        ("calibrate", "--model_dir", "none", "-o", "{out}", "--json", "{out}/x.json"),
    ],
    ids=lambda words: words[0],
)
def test_a_file_in_the_folder_that_appears_whole_is_refused(
    refused: Refused, tmp_path: Path, words: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    told = refused(*(word.format(out=out) for word in words))
    assert f" lies in --output_dir {out}; give a file outside of it" in told
    assert list(out.iterdir()) == []


def test_the_demo_models_folder_has_a_name_too(refused: Refused, model: Path) -> None:
    told = refused("demo-model", model, "--force", "--json", model / "config.json")
    assert f"--json {model / 'config.json'} lies in the output folder {model}; give a file outside of it" in told


def test_a_link_into_the_hubs_cache_is_a_file_of_the_folder_that_it_stands_in(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    for folder in (blobs, snapshot):
        folder.mkdir()
    (blobs / "0a1b").write_text("{}")
    (snapshot / "config.json").symlink_to("../blobs/0a1b")
    with pytest.raises(UsageError, match="is a file of --model_dir"):
        require_apart(_given(model_dir=snapshot, json=snapshot / "config.json"), ("json",))
    again = tmp_path / "link to the snapshot"
    again.symlink_to("snapshot")
    with pytest.raises(UsageError, match="is a file of --model_dir"):
        require_apart(_given(model_dir=snapshot, json=again / "config.json"), ("json",))


def test_the_record_of_an_earlier_run_may_lie_in_an_input_folder(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    for _ in range(2):
        assert main(["plan", "--preset", "internlm2-1.8b", "--json", "plan.json"]) == 0
    require_apart(_given(model_dir=Path(), json=Path("plan.json")), ("json",))
    Path("plan.json").write_text('{"command": "plan"}')
    with pytest.raises(UsageError, match=r"plan.json is a file of --model_dir"):
        require_apart(_given(model_dir=Path(), json=Path("plan.json")), ("json",))
    assert capsys.readouterr().err == ""


def test_results_and_empty_files_of_an_input_folder_are_replaced(model: Path) -> None:
    require_apart(_given(model_dir=model, json=model / "empty.json", png=model / "plot.png"), ("json", "png"))
    require_apart(_given(model_dir=model, json=model / "new.json"), ("json",))
    with pytest.raises(UsageError, match=r"plot.png is a file of --dataset"):  # any file may be one of its texts
        require_apart(_given(dataset=f"{model}:default", png=model / "plot.png"), ("png",))


def test_a_model_that_only_the_recipe_names_is_read_too(refused: Refused, tmp_path: Path, model: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {model}")
    told = refused("plan", "--recipe", recipe, "--json", model / "config.json")
    assert f"--json {model / 'config.json'} is a file of the recipe's model {model}; give a file of its own" in told
    recipe.write_text("modle: x")  # the recipe's own mistake is the command's to tell
    assert "modle" in refused("plan", "--recipe", recipe, "--json", tmp_path / "out.json")


def test_words_are_no_paths(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop word may be called as the folder is, and a preset as a folder of results."""
    monkeypatch.chdir(model)
    words = {"stop_words": [".", "/"], "bad_words": "..", "input_text": ["."], "system_text": ".", "preset": "."}
    require_apart(_given(**words, dataset_dir=".", modes=["."], json=Path("config.json")), ("json",))


def test_two_outputs_are_two_files(model: Path) -> None:
    one = model / "new"
    with pytest.raises(UsageError, match=r"--json and --png are both .*new; give each a file of its own"):
        require_apart(_given(json=one, png=model / "." / "new"), ("json", "png"))
    require_apart(_given(json=Path("/dev/null"), png=Path("/dev/null")), ("json", "png"))
