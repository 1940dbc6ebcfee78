"""What all commands share: how words are read, and what is written as JSON."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from workbench.cli.command import Command, Outcome, UsageError, require_writable, underscored, write_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tp_size", type=int, default=1)
    parser.add_argument("--input_text", nargs="+", required=True)


@pytest.fixture
def command() -> Command:
    return Command("say", "Say it.", "workbench say --input_text hello\nworkbench say", add_flags, lambda _: Outcome())


@pytest.mark.parametrize("words", [["--tp-size", "2"], ["--tp_size", "2"], ["--tp-size=2"], ["--tp_size=2"]])
def test_dashes_and_underscores_in_flags_mean_the_same(command: Command, words: list[str]) -> None:
    assert command.parse([*words, "--input-text", "a"]).tp_size == 2


def test_values_keep_their_dashes(command: Command) -> None:
    assert command.parse(["--input_text", "a-b", "c - d"]).input_text == ["a-b", "c - d"]
    assert underscored(["--a-b=c-d", "e-f", "-o", "--", "--g-h"]) == ["--a_b=c-d", "e-f", "-o", "--", "--g-h"]


def test_the_nearest_flag_is_suggested_before_anything_else_is_complained_of(command: Command) -> None:
    with pytest.raises(UsageError) as caught:
        command.parse(["--tp-sise", "2"])
    assert str(caught.value) == "--tp_sise is no flag; did you mean '--tp_size'?"


def test_a_flag_like_no_other_points_at_the_help(command: Command) -> None:
    with pytest.raises(UsageError) as caught:
        command.parse(["--zzz"])
    assert str(caught.value) == "--zzz is no flag; see workbench say --help"


def test_a_flag_of_another_command_says_what_to_do_instead() -> None:
    command = Command("say", "", "", add_flags, lambda _: Outcome(), instead={"--input_texts": "write it"})
    with pytest.raises(UsageError) as caught:
        command.parse(["--input-texts", "a"])
    assert str(caught.value) == "--input_texts is no flag; write it"


def test_flags_are_not_shortened(command: Command) -> None:
    with pytest.raises(UsageError, match="--input is no flag; did you mean '--input_text'"):
        command.parse(["--input", "a"])


def test_a_missing_flag_is_named(command: Command) -> None:
    with pytest.raises(UsageError, match="required: --input_text; see workbench say --help"):
        command.parse([])


def test_an_unreadable_number_is_named(command: Command) -> None:
    with pytest.raises(UsageError, match="argument --tp_size: invalid int value: 'two'; see workbench say --help"):
        command.parse(["--tp_size", "two", "--input_text", "a"])


def test_help_ends_with_the_example(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.parse(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.endswith("example:\n  workbench say --input_text hello\n  workbench say\n")


def test_json_holds_plain_values(tmp_path: Path) -> None:
    import numpy as np
    import torch

    content = {
        "path": Path("a/b"),
        "numpy": np.float32(0.5),
        "torch": torch.tensor(3),
        "several": (1, [math.nan, math.inf, -math.inf]),
        "inner": {1: None, "yes": True},
    }
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "path": "a/b",
        "numpy": 0.5,
        "torch": 3,
        "several": [1, [None, None, None]],
        "inner": {"1": None, "yes": True},
    }


def test_json_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--json .* cannot be written \(Is a directory\); give another path"):
        write_json(tmp_path, {})


def test_a_file_that_can_be_written_is_fine(tmp_path: Path) -> None:
    require_writable("--csv", None)
    require_writable("--csv", tmp_path / "new.csv")
    (tmp_path / "old.csv").touch()
    require_writable("--csv", tmp_path / "old.csv")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--csv .* is a folder; give the path of a file"):
        require_writable("--csv", tmp_path)
    with pytest.raises(UsageError, match=r"--csv .*x: the folder .*none does not exist; make it, or give another path"):
        require_writable("--csv", tmp_path / "none" / "x")
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may write everywhere
    with pytest.raises(UsageError, match=r"--csv .*x may not be written; give a path of yours"):
        require_writable("--csv", tmp_path / "x")


def test_an_outcome_replaces_the_file_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, link = tmp_path / "held.json", tmp_path / "link.json"
    link.symlink_to(held)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(held.read_text()) == {"a": 1}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(UsageError, match=r"link\.json cannot be written \(No space left on device\)"):
        write_json(link, {"b": 2})
    assert json.loads(held.read_text()) == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held.json", "link.json"]


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no such device")
def test_an_outcome_can_go_to_a_device() -> None:
    write_json(Path("/dev/null"), {"a": 1})
    assert not Path("/dev/null").is_file()


def test_an_output_that_leads_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"--json .*loop is a link that leads in a circle; give the path of a file"):
        require_writable("--json", tmp_path / "loop")
    (tmp_path / "link").symlink_to("not-there-yet.json")
    require_writable("--json", tmp_path / "link")
