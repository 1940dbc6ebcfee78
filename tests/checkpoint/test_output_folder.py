"""A folder appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.checkpoint.output_folder import output_folder
from workbench.errors import Cancelled, CheckpointError

OLD = '{"workbench": {"kind": "checkpoint"}}'


def _write(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


def _write_and_raise(target: Path, error: type[BaseException]) -> None:
    with output_folder(target, force=True, needed_bytes=1) as folder:
        _write(folder, "new")
        raise error


def _write_while_another_does(target: Path) -> None:
    with output_folder(target, force=False, needed_bytes=1) as folder:
        _write(folder, "ours")
        target.mkdir()
        _write(target, "theirs")


def test_the_folder_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with output_folder(target, force=False, needed_bytes=1) as folder:
        _write(folder, "new")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "config.json").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled, RuntimeError])
@pytest.mark.parametrize("existing", [False, True])
def test_an_exception_leaves_things_as_they_were(tmp_path: Path, error: type[BaseException], existing: bool) -> None:
    target = tmp_path / "out"
    if existing:
        target.mkdir()
        _write(target, OLD)
    with pytest.raises(error):
        _write_and_raise(target, error)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])
    assert not existing or (target / "config.json").read_text() == OLD


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    match = "exists; add --force to replace it"
    with pytest.raises(CheckpointError, match=match), output_folder(tmp_path, force=False, needed_bytes=1):
        pytest.fail("entered")


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(CheckpointError, match="exists"):
        _write_while_another_does(target)
    assert (target / "config.json").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_force_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    _write(target, '{"workbench": {"kind": "engine"}}')
    (target / "stale").touch()
    with output_folder(target, force=True, needed_bytes=1, replaces="engine") as folder:
        _write(folder, "new")
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("config", ["{}", "not json", '{"architectures": ["InternLMForCausalLM"]}'])
def test_force_does_not_replace_what_others_made(tmp_path: Path, config: str) -> None:
    target = tmp_path / "downloaded"
    target.mkdir()
    _write(target, config)
    for replaces in ("checkpoint", "engine", "model"):
        with (
            pytest.raises(CheckpointError, match=f"is no {replaces} that this command wrote; remove it by hand"),
            output_folder(target, force=True, needed_bytes=1, replaces=replaces),
        ):
            pytest.fail("entered")
    assert (target / "config.json").read_text() == config


@pytest.mark.parametrize(("kind", "replaces"), [("checkpoint", "engine"), ("engine", "checkpoint")])
def test_force_does_not_replace_another_kind_of_ours(tmp_path: Path, kind: str, replaces: str) -> None:
    target = tmp_path / "ours"
    target.mkdir()
    _write(target, json.dumps({"workbench": {"kind": kind}}))
    with (
        pytest.raises(CheckpointError, match=f"is no {replaces}"),
        output_folder(target, force=True, needed_bytes=1, replaces=replaces),
    ):
        pytest.fail("entered")


def test_force_does_not_replace_a_stranger(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    match = "is no checkpoint that this command wrote; remove it by hand"
    with pytest.raises(CheckpointError, match=match), output_folder(tmp_path, force=True, needed_bytes=1):
        pytest.fail("entered")
    assert (tmp_path / "thesis.tex").exists()


def test_force_does_not_replace_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="is no checkpoint"), output_folder(file, force=True, needed_bytes=1):
        pytest.fail("entered")


def test_a_small_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    match = r"needs 1,000 bytes and the disk has 999 free; make room"
    with (
        pytest.raises(CheckpointError, match=match),
        output_folder(tmp_path / "deep" / "out", force=False, needed_bytes=1000),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    match = "file cannot be written to"
    with pytest.raises(CheckpointError, match=match), output_folder(tmp_path / "file/out", force=False, needed_bytes=1):
        pytest.fail("entered")
