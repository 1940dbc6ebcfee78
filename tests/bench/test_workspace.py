"""Where a bench keeps things, and that two processes do not write the same folder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
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
    workspace = Workspace(root, "a" * 64)
    with workspace.writing(workspace.calibration("x")):
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
        folder = workspace.calibration("x")
        with pytest.raises(CheckpointError, match=r"another process is writing .*x; wait until it has ended"):
            workspace.writing(folder).__enter__()
        with workspace.writing(workspace.calibration("y")):  # another folder is nobody's business
            pass
        other.kill()
        other.join(30)
        with workspace.writing(folder):
            pass
    finally:
        other.kill()


def test_a_second_thread_waits_for_its_own_process(tmp_path):
    workspace, order = Workspace(tmp_path, "a" * 64), []
    folder, begun = workspace.checkpoint("x"), threading.Event()

    def second():
        begun.set()
        with Workspace(tmp_path, "a" * 64).writing(folder):
            order.append("second")

    with workspace.writing(folder):
        thread = threading.Thread(target=second)
        thread.start()
        assert begun.wait(10)
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_what_is_being_written_is_neither_listed_nor_removed_and_leftovers_are(tmp_path):
    workspace = Workspace(tmp_path, "a" * 64)
    names = ["a", "b", ".c.123.partial", ".d.456.partial"]
    for age, name in enumerate(names):
        folder = workspace.folder / "checkpoints" / name
        folder.mkdir(parents=True)
        os.utime(folder, (1000 + age, 1000 + age))
    assert [folder.name for folder in workspace.checkpoints()] == ["b", "a"]
    with workspace.writing(workspace.checkpoint("c")), workspace.writing(workspace.checkpoint("a")):
        workspace.keep_newest_checkpoints(1)
    left = sorted(path.name for path in (workspace.folder / "checkpoints").iterdir())
    assert left == [".c.123.partial", "a", "b"]


def test_a_calibration_that_is_removed_while_it_is_listed_is_passed_over(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path, "a" * 64)
    for name in ("stays", "goes"):
        workspace.calibration(name).mkdir(parents=True)
        (workspace.calibration(name) / RANGES_FILE).touch()
    glob = Path.glob

    def removed_meanwhile(path, pattern):
        found = list(glob(path, pattern))
        shutil.rmtree(workspace.calibration("goes"))
        return found

    monkeypatch.setattr(Path, "glob", removed_meanwhile)
    assert [folder.name for folder in workspace.calibrations()] == ["stays"]
