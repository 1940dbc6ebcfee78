"""A folder appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.checkpoint.output_folder import check_apart, output_folder
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
    _write(tmp_path, OLD)
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
            pytest.raises(
                CheckpointError,
                match=f"is no {replaces} that this command wrote; give another output, or remove it by hand",
            ),
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
    match = "is no checkpoint that this command wrote; give another output, or remove it by hand"
    with pytest.raises(CheckpointError, match=match), output_folder(tmp_path, force=True, needed_bytes=1):
        pytest.fail("entered")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_force_does_not_replace_is_told_before_force_is_spoken_of(tmp_path: Path, force: bool) -> None:
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.touch()
    folder.mkdir()
    (folder / "thesis.tex").touch()
    link.symlink_to(folder)
    told = {file: "file exists and is no checkpoint", folder: "folder exists and is no checkpoint", link: "is a link"}
    for target, match in told.items():
        with pytest.raises(CheckpointError, match=match), output_folder(target, force=force, needed_bytes=1):
            pytest.fail("entered")
    assert (link / "thesis.tex").exists()


def test_the_output_is_never_what_it_is_made_from(tmp_path: Path) -> None:
    source = tmp_path / "a" / "model"
    source.mkdir(parents=True)
    check_apart(None, source)
    check_apart(source, source / "inside")
    check_apart(source, tmp_path / "b")
    for out in (source, tmp_path / "a" / ".." / "a" / "model"):
        with pytest.raises(CheckpointError, match=f"^output {out} is what it would be made from; give another output$"):
            check_apart(source, out)
    with pytest.raises(CheckpointError, match=f"holds {source}, which it would be made from; give another output$"):
        check_apart(source, tmp_path)
    _write(source, "{}")
    with pytest.raises(CheckpointError, match=f"config.json is a file of {source}, which it would be made from; give"):
        check_apart(source, source / "config.json")


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
