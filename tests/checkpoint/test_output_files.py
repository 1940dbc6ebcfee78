"""Files that appear whole, all of them or none."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from workbench.checkpoint import output_files as module
from workbench.checkpoint.output_files import output_files


def test_all_appear_at_the_end(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.npy"
    first.write_text("old")
    first.chmod(0o640)
    with output_files({"a": first, "b": second, "c": None}) as drafts:
        assert set(drafts) == {"a", "b"}
        drafts["a"].write_text("new")
        drafts["b"].write_text("too")
        assert first.read_text() == "old"
        assert not second.exists()
    assert (first.read_text(), second.read_text()) == ("new", "too")
    assert first.stat().st_mode & 0o777 == 0o640
    other = tmp_path / "other"
    other.touch()
    assert second.stat().st_mode == other.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.npy", "other"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_none_appears_when_the_work_fails(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(stop), output_files({"a": path, "b": tmp_path / "b"}) as drafts:  # noqa: PT012 - what is undone
        drafts["a"].write_text("half")
        raise stop
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "to").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "to")
    with output_files({"a": tmp_path / "link"}) as drafts:
        drafts["a"].write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "to").read_text() == "new"


def test_a_pipe_is_written_at_the_end(tmp_path: Path) -> None:
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    with output_files({"a": path}) as drafts:
        drafts["a"].write_text("new")
    reader.join(timeout=10)
    assert read == ["new"]
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system has no such links")
def test_a_link_to_a_pipe_that_has_no_name_is_written() -> None:
    read, write = os.pipe()
    try:
        with output_files({"a": Path(f"/dev/fd/{write}")}) as drafts:
            drafts["a"].write_text("new")
        assert os.read(read, 9) == b"new"
    finally:
        os.close(read), os.close(write)


def _write_three(folder: Path) -> None:
    """ "a" was there, "b" and "c" were not."""
    (folder / "a").write_text("old")
    with output_files({name: folder / name for name in "abc"}) as drafts:
        for draft in drafts.values():
            draft.write_text("new")


def test_the_first_is_put_back_when_another_cannot_be_put_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace = Path.replace

    def failing(draft: Path, place: Path) -> Path:
        if place.name == "c":
            raise OSError("the disk is gone")
        return replace(draft, place)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        _write_three(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_it_is_put_back_on_a_file_system_without_links(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stop: type[BaseException]
) -> None:
    replace = Path.replace

    def failing(draft: Path, place: Path) -> Path:
        if place.name == "b":
            raise stop
        return replace(draft, place)

    def no_links(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(Path, "replace", failing)
    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(stop):
        _write_three(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_became_a_folder_meanwhile_leaves_the_others_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("old")
    with pytest.raises(IsADirectoryError), output_files({"a": first, "b": second}) as drafts:  # noqa: PT012
        drafts["a"].write_text("new")
        second.mkdir()
    assert first.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("fails", ["copy", "rename"])
def test_a_file_in_a_folder_where_nothing_may_be_made_is_put_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str
) -> None:
    closed, first, second = tmp_path / "closed", tmp_path / "closed" / "a", tmp_path / "b"
    closed.mkdir()
    first.write_text("old")
    monkeypatch.setattr(module, "_is_replaceable", lambda place: place.parent != closed)
    copy = module._copy
    tried: list[Path] = []

    def failing(source: Path, place: Path) -> None:
        copy(source, place)
        tried.append(place)
        if fails == "copy" and len(tried) == 1:
            place.write_text("half")
            raise OSError("the disk is full")

    def no_rename(*_: object) -> None:
        raise OSError("no rename")

    monkeypatch.setattr(module, "_copy", failing)
    if fails == "rename":
        monkeypatch.setattr(Path, "replace", no_rename)
    with (
        pytest.raises(OSError, match="disk is full" if fails == "copy" else "no rename"),
        output_files({"b": second, "a": first}) as drafts,
    ):
        drafts["a"].write_text("new")
    assert tried == [first, first]  # written, and put back
    assert first.read_text() == "old"
    assert (os.listdir(tmp_path), os.listdir(closed)) == (["closed"], ["a"])
