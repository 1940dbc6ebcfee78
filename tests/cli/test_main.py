"""Exit codes, and what is said on which stream."""

from __future__ import annotations

import argparse
import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workbench.cli import main as main_module
from workbench.cli.command import Command, Outcome, Unfinished
from workbench.cli.main import MODULES, load_command, main
from workbench.errors import Cancelled, CheckpointError, GateError, LimitError

ROOT = Path(__file__).parents[2]


def plant(monkeypatch: pytest.MonkeyPatch, outcome: Outcome | BaseException) -> None:
    """Make every command ``planted``, which ends as given."""

    def run(_: argparse.Namespace) -> Outcome:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    command = Command("planted", "Planted.", "workbench planted", lambda _: None, run)
    monkeypatch.setattr(main_module, "load_command", lambda _: command)


def test_done_is_0_and_a_failed_gate_is_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for passed, code in ((True, 0), (False, 1)):
        plant(monkeypatch, Outcome({"figure": 1}, passed=passed))
        assert main(["planted", "--json", str(tmp_path / "x.json")]) == code
        content = json.loads((tmp_path / "x.json").read_text())
        assert content == {"command": "planted", "version": "0.1.0", "exit_code": code, "result": {"figure": 1}}


@pytest.mark.parametrize(("error", "code"), [(CheckpointError("no such folder"), 2), (GateError("too far off"), 1)])
def test_a_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, error: Exception, code: int
) -> None:
    plant(monkeypatch, error)
    assert main(["planted", "--json", str(tmp_path / "x.json")]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"workbench: error: {error}\n"
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["exit_code"] == code
    assert content["error"] == {"kind": type(error).__name__, "message": str(error)}
    assert "result" not in content


def test_debug_shows_where_a_mistake_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, CheckpointError("no such folder"))
    assert main(["planted", "--debug"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last)")
    assert told.endswith("workbench: error: no such folder\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room, or write to another"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied; give a path of yours"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory; add --debug to see where this"),
        (OSError("odd"), "odd; add --debug to see where this was raised"),
    ],
)
def test_what_the_operating_system_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, error: OSError, message: str
) -> None:
    plant(monkeypatch, error)
    assert main(["planted", "--json", str(tmp_path / "x.json")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"workbench: error: {message}")
    assert told.count("\n") == 1
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["exit_code"] == 2
    assert content["error"]["kind"] == type(error).__name__
    assert content["error"]["message"].startswith(message)


def test_a_failure_that_cannot_be_recorded_does_not_hide_the_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, CheckpointError("no such folder"))
    assert main(["planted", "--json", "/dev/full"]) == 2
    assert capsys.readouterr().err == (
        "workbench: warning: --json /dev/full cannot be written (No space left on device); give another path\n"
        "workbench: error: no such folder\n"
    )


def test_the_evidence_of_a_failed_gate_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, GateError("too far off", details={"failed": [{"tap": "logits"}]}))
    assert main(["planted", "--json", str(tmp_path / "x.json")]) == 1
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["error"]["details"] == {"failed": [{"tap": "logits"}]}


def test_a_gpu_without_memory_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert main(["planted", "--json", str(tmp_path / "x.json")]) == 2
    told = "the GPU's memory is used up: 2.00 GiB more were wanted; run fewer or shorter prompts at once"
    assert told in capsys.readouterr().err
    content = json.loads((tmp_path / "x.json").read_text())
    assert (content["exit_code"], content["error"]["kind"]) == (2, "LimitError")
    assert content["error"]["message"].startswith(told)


@pytest.mark.parametrize("cause", [LimitError("too much"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_was_found_before_an_error_is_recorded_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], cause: LimitError | OSError
) -> None:
    plant(monkeypatch, Unfinished(cause, {"figure": 1}))
    assert main(["planted", "--json", str(tmp_path / "x.json")]) == 2
    content = json.loads((tmp_path / "x.json").read_text())
    assert (content["exit_code"], content["result"]) == (2, {"figure": 1})
    assert content["error"]["kind"] == type(cause).__name__
    assert content["error"]["message"] in capsys.readouterr().err


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Cancelled()])
def test_a_stopped_command_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: BaseException
) -> None:
    plant(monkeypatch, stop)
    assert main(["planted"]) == 130
    assert capsys.readouterr().err == "workbench: cancelled, nothing was left behind\n"


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["planted"])


def test_a_json_path_in_no_folder_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plant(monkeypatch, AssertionError("it ran"))
    assert main(["planted", "--json", str(tmp_path / "none" / "x.json")]) == 2
    assert re.search(r"--json .*x\.json: the folder .*none does not exist; make it", capsys.readouterr().err)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convrt"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("workbench: error: 'convrt' is no command; allowed: demo-model, plan, calibrate, ")
    assert told.endswith("did you mean 'convert'?\n")


def test_no_command_shows_the_overview_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    assert all(f"\n  {name} " in bare for name in MODULES)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "workbench 0.1.0\n"


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_help_with_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    assert main([name, "--help"]) == 0
    assert "--json PATH" in capsys.readouterr().out
    command = load_command(name)
    assert command.name == name
    for example in command.example.strip().splitlines():
        words = shlex.split(example, comments=True)
        if words[0] != "echo":  # what tests/cli/test_examples.py takes in
            assert words[:2] == ["workbench", name]
            command.parse(words[2:])


@pytest.mark.parametrize("name", MODULES)
def test_every_flag_is_documented(name: str) -> None:
    """In docs/cli.md, by its underscored spelling: in the command's own section, or among those of several commands."""
    from workbench.cli.dummy_flags import CONSTANTS, SIZES
    from workbench.cli.recipe_flags import flagged_fields

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

    def documented(flag: str, title: str) -> bool:
        return f"`{flag}" in text.split(f"## {title}\n")[1].split("\n## ")[0]

    recipe_flags = {item.flag for item in flagged_fields()}
    dummy_flags = [f"--{name}" for name in (*SIZES, *CONSTANTS, "hidden_act", "preset")]
    for action in load_command(name).parser()._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and flag not in ("--help", "--json", "--debug"):
                shared = {**dict.fromkeys(recipe_flags, "Recipe flags"), **dict.fromkeys(dummy_flags, "Dummy weights")}
                title = shared.get(flag, f"workbench {name}")
                assert documented(flag, title), flag


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from workbench.cli.main import MODULES, main\n"
        "for name in MODULES: main([name, '--help'])\n"
        "heavy = {'torch', 'transformers', 'tensorrt', 'tensorrt_rtx', 'mpi4py', 'numpy', 'pandas', 'matplotlib'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
