"""Where a bench keeps things, and that two processes do not write the same folder."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from workbench.bench.workspace import Workspace, cache_root, safe_name
from workbench.errors import CheckpointError
from workbench.quantization.ranges import RANGES_FILE


def test_the_cache_folder_is_as_given_else_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    assert cache_root() == tmp_path / "xdg" / "workbench"
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    assert cache_root(tmp_path / "given") == tmp_path / "given"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("built-in text, 8 x 256", "built-in-text-8-x-256"),
        ("../../etc", "etc"),
        ("...", "unnamed"),
        ("中文", "unnamed"),
    ],
)
def test_names_are_safe_as_folders(text, name):
    assert safe_name(text) == name


def test_models_do_not_share_folders(tmp_path):
    first, second = Workspace(tmp_path, "a" * 64), Workspace(tmp_path, "b" * 64)
    assert first.calibration("x") != second.calibration("x")


def test_unfinished_calibrations_are_not_listed_and_the_newest_is_last(tmp_path):
    workspace = Workspace(tmp_path, "a" * 64)
    for age, name in enumerate(["old", "new", "half.partial"]):
        folder = workspace.calibration(name)
        folder.mkdir(parents=True)
        (folder / RANGES_FILE).touch()
        os.utime(folder / RANGES_FILE, (1000 + age, 1000 + age))
    assert [folder.name for folder in workspace.calibrations()] == ["old", "new"]


def test_only_the_checkpoints_used_last_are_kept(tmp_path):
    workspace = Workspace(tmp_path, "a" * 64)
    for age, name in enumerate(["a", "b", "c"]):
        workspace.checkpoint(name).mkdir(parents=True)
        os.utime(workspace.checkpoint(name), (1000 + age, 1000 + age))
    workspace.touch(workspace.checkpoint("a"))
    workspace.keep_newest_checkpoints(2)
    assert sorted(path.name for path in (workspace.folder / "checkpoints").iterdir()) == ["a", "c"]


def _hold(root: Path, held: Event, go: Event) -> None:
    with Workspace(root, "a" * 64).writing():
        held.set()
        go.wait(30)


def test_two_processes_do_not_write_at_once_and_a_killed_one_lets_go(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, go))
    other.start()
    try:
        assert held.wait(60)
        workspace = Workspace(tmp_path, "a" * 64)
        with pytest.raises(CheckpointError, match=r"another process is writing to .*wait until it has ended"):
            workspace.writing().__enter__()
        other.kill()
        other.join(30)
        with workspace.writing():
            pass
    finally:
        other.kill()
