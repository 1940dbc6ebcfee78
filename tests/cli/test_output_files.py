"""Files that appear whole, all of them or none."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from workbench.cli.output_files import output_files


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
