"""The examples that ``--help`` prints: each can be followed as it stands, one after the other. Nothing is run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.cli.convert import ONE_RANK_FOLDER
from workbench.cli.main import MODULES, load_command, overview

ROOT = Path(__file__).parents[2]
# What the flags that take a path do with it, by where argparse leaves it.
READ = {
    *("model_dir", "recipe__model", "hf_model_dir", "tokenizer_dir", "checkpoint_dir", "ft_model_dir", "engine_dir"),
    *("ranges", "recipe", "text", "input_file", "dataset"),
}
WRITTEN_FOLDERS = {"out", "output_dir"}
WRITTEN_FILES = {
    *("json", "csv", "parquet", "png", "roofline", "markdown", "output_csv", "output_npy", "output_logits_npy")
}


class Disk:
    """What earlier lines have left."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    def follow(self, line: str) -> None:
        """One line: what it reads is there, and what it writes is not, or may be replaced."""
        words = shlex.split(line, comments=True)
        if words[0] == "echo":
            assert words[-2] == ">"
            assert words[-1] not in self.made, f"{line}: is there already"
            self.made.add(words[-1])
            return
        assert words[0] == "workbench"
        self._follow(words[1], load_command(words[1]).parse(words[2:]), line)

    def _follow(self, command: str, args: argparse.Namespace, line: str) -> None:
        given = {name: str(value) for name, value in vars(args).items() if isinstance(value, str | Path)}
        for name in READ & set(given):
            assert self._is_there(name, given[name]), f"{line}: no line before makes {given[name]}"
        for name in (WRITTEN_FOLDERS | WRITTEN_FILES) & set(given):
            path = given[name]
            if getattr(args, "smoothquant", None) is not None or getattr(args, "calibrate_kv_cache", False):
                path += f"/{ONE_RANK_FOLDER}"
            # The demo model is used again where it is complete.
            may_stay = (command, path) == ("demo-model", "demo/model")
            assert path not in self.made or may_stay or getattr(args, "force", False), f"{line}: {path} exists"
            self.made.add(path)

    def _is_there(self, name: str, path: str) -> bool:
        if name == "dataset" and not path.startswith("demo/"):
            return True  # of the hub
        return path in self.made or (not path.startswith("demo/") and (ROOT / path).is_file())


def _make_demo() -> Iterator[str]:
    """The command lines of ``make demo``."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ndemo:")[1].split("\n\n")[0]
    for line in recipe.splitlines():
        if line.startswith("\t$(BIN)/workbench"):
            yield line.strip().replace("$(BIN)/", "").replace("$(DEMO)", "demo")


def _examples() -> Iterator[str]:
    for name in MODULES:
        yield from load_command(name).example.strip().splitlines()


@pytest.mark.parametrize("after_make_demo", [False, True])
def test_every_example_can_be_followed_as_it_stands(after_make_demo: bool) -> None:
    disk = Disk()
    if after_make_demo:
        for line in _make_demo():
            disk.follow(line)
        assert {"demo/model", "demo/checkpoint", "demo/engine"} <= disk.made
    for line in _examples():
        disk.follow(line)


@pytest.mark.parametrize("after_make_demo", [False, True])
def test_the_overviews_examples_can_be_followed(after_make_demo: bool) -> None:
    disk = Disk()
    for line in _make_demo() if after_make_demo else ():
        disk.follow(line)
    lines = [line.strip() for line in overview().splitlines() if line.startswith("  workbench ")]
    for line in [line for line in lines if "COMMAND" not in line]:
        disk.follow(line)
    assert {"demo/model", "demo/int8"} <= disk.made


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["workbench convert --model_dir demo/none -o demo/a"], "no line before makes demo/none"),
        (["workbench calibrate --model_dir demo/model --text notes.txt -o demo/a"], "no line before makes notes.txt"),
        (["workbench build --output_dir demo/a", "workbench build --output_dir demo/a"], "demo/a exists"),
        (["echo a > demo/a", "echo b > demo/a"], "is there already"),
    ],
)
def test_an_example_that_cannot_be_followed_is_found(lines: list[str], told: str) -> None:
    disk = Disk()
    disk.made.add("demo/model")
    for line in lines[:-1]:
        disk.follow(line)
    with pytest.raises(AssertionError, match=told):
        disk.follow(lines[-1])


@pytest.mark.parametrize("name", MODULES)
def test_every_flag_with_a_path_is_known_to_read_or_to_write(name: str) -> None:
    paths = {action.dest for action in load_command(name).parser()._actions if action.type is Path}
    assert paths <= READ | WRITTEN_FOLDERS | WRITTEN_FILES
