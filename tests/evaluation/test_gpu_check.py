"""The one command for a machine with a GPU: which processes it starts and how it reads what they say."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from workbench.evaluation import gpu_check
from workbench.evaluation.gpu_check import PARTS, command_of, main, run_part


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> object:
    """``saying("words", code)``: every part is a process that says so and ends with that code."""

    def process(words: str, code: int = 0) -> None:
        script = f"import os, sys; print({words!r}); print('  '); sys.exit({code})"
        monkeypatch.setattr(gpu_check, "command_of", lambda _: ([sys.executable, "-c", script], {}))

    return process


@pytest.mark.parametrize(
    ("part", "words", "code", "outcome"),
    [
        ("kernels", "12 of 12 checks passed", 0, "passed"),
        ("kernels", "11 of 12 checks passed", 1, "failed"),
        ("memcheck", "========= ERROR SUMMARY: 0 errors", 0, "passed"),
        ("memcheck", "========= ERROR SUMMARY: 3 errors", 9, "failed"),
        ("memcheck", "========= Error: no attach", 0, "failed"),  # it ended well, but never looked
        ("racecheck", "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, "passed"),
        ("racecheck", "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)", 0, "failed"),
        ("tests", "3 passed", 0, "passed"),
    ],
)
def test_a_part_passes_by_its_code_and_its_words(
    saying: object, part: str, words: str, code: int, outcome: str
) -> None:
    saying(words, code)  # type: ignore[operator]
    result = run_part(part)
    assert (result.part, result.outcome, result.detail) == (part, outcome, words)
    assert result.seconds > 0


def test_a_sanitizers_first_finds_are_kept(saying: object) -> None:
    """They scroll away: a summary alone names neither the kernel nor the line."""
    finds = [f"========= Error: Race reported in kernel_{i}.cu:7" for i in range(9)]
    summary = "========= RACECHECK SUMMARY: 9 hazards displayed (9 errors, 0 warnings)"
    saying("\n".join(["========= COMPUTE-SANITIZER", "ok 1e-3 a product", *finds, "=========", summary]), 9)  # type: ignore[operator]
    kept = [find.strip("= ") for find in finds[: gpu_check.FOUND_FIRST]]
    assert run_part("racecheck").detail == " | ".join([*kept, summary])


def test_a_part_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import time; print('still here', flush=True); time.sleep(60)"
    monkeypatch.setattr(gpu_check, "command_of", lambda _: ([sys.executable, "-c", script], {}))
    monkeypatch.setattr(gpu_check, "MOST_SECONDS", 0.5)
    assert run_part("kernels").detail == "took longer than 0.5 s"


def test_what_a_stopped_part_had_started_is_stopped_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a sanitizer does: the child works, and holds the pipe."""
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(30)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    monkeypatch.setattr(gpu_check, "command_of", lambda _: ([sys.executable, "-c", script], {}))
    monkeypatch.setattr(gpu_check, "MOST_SECONDS", 1.5)
    result = run_part("memcheck")
    assert result.detail == "took longer than 1.5 s"
    assert result.seconds < 15
    assert not _lives(int(pid.read_text()))


def _lives(pid: int) -> bool:
    """Whether a process runs, a moment after it was killed."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False  # killed, and its parent has not noticed
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.1)
    return True


def test_sanitizers_watch_the_quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/bin/compute-sanitizer")
    command, environment = command_of("memcheck")
    assert command[:3] == ["/bin/compute-sanitizer", "--tool", "memcheck"]
    assert command[-3:] == ["-m", "workbench.evaluation.kernel_checks", "--quick"]
    assert command[command.index("--kernel-name-exclude") + 1].startswith("kns=cudnn,kns=")
    assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    assert command_of("racecheck")[1] == {}
    assert command_of("tests")[0][-1].endswith("tests")


def test_what_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    result = run_part("racecheck")
    assert (result.outcome, result.detail) == (
        "not run", "compute-sanitizer, a part of the CUDA toolkit, was not found on the PATH"
    )  # fmt: skip
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert "not in the installed package" in run_part("tests").detail


def test_the_report_has_every_part(
    saying: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saying("fine")  # type: ignore[operator]
    monkeypatch.setattr(gpu_check, "require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    assert main(["--parts", "kernels", "tests", "--report", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [part["part"] for part in report["parts"]] == ["kernels", "tests"]
    assert report["gpu"].startswith("A GPU, torch ")
    assert "kernels    passed" in capsys.readouterr().out
    assert main([]) == 1  # sanitizers never said that all was well
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-4:]] == list(PARTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert (
        "a check of the kernels needs an NVIDIA GPU, and torch finds no CUDA GPU; use a machine with"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (".", "is a folder; give the path of a file"),
        ("none/report.json", "lies in no folder: "),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    monkeypatch.setattr(gpu_check, "require_gpu", lambda _: pytest.fail("the path comes first"))
    assert main(["--report", str(tmp_path / name)]) == 2
    assert told in capsys.readouterr().err


def test_a_report_of_somebody_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["--report", str(tmp_path / "report.json")]) == 2
    assert "report.json may not be written; give a path of yours" in capsys.readouterr().err


def test_a_report_is_written_whole_or_not_at_all(
    saying: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saying("fine")  # type: ignore[operator]
    report = tmp_path / "report.json"
    report.write_text("old")
    monkeypatch.setattr(gpu_check, "require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    write = Path.write_text

    def half(path: Path, text: str, **options: str) -> int:
        write(path, text[:5], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        main(["--parts", "kernels", "--report", str(report)])
    assert report.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]
