"""Everything of correctness that needs a GPU, which a machine without one cannot show, by one command.

    python -m workbench.evaluation.gpu_check [--parts tests kernels memcheck racecheck] [--report gpu_check.json]

``tests`` runs the test suite's GPU tests (in a checkout), ``kernels`` compares every kernel with the plain op set,
``memcheck`` and ``racecheck`` run the same on few shapes under CUDA's compute-sanitizer. Each part is a process of its
own. The command ends with 1 if a part failed or could not be run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import workbench
from workbench.backends.kernels import require_gpu
from workbench.checkpoint.output_files import output_files
from workbench.errors import WorkbenchError

ROOT = Path(workbench.__file__).parents[1]
SANITIZERS = ("memcheck", "racecheck")
PARTS = ("kernels", *SANITIZERS, "tests")
MOST_SECONDS = 600
FOUND_FIRST = 6  # lines of a sanitizer that go into the report
KERNEL_CHECKS = [sys.executable, "-m", "workbench.evaluation.kernel_checks"]
# Kernels of the libraries: slow to watch, and racecheck does not understand how cuDNN's synchronize.
OTHERS = ("cudnn", "cublas", "cutlass", "nvjet", "native")
# memcheck ends with an error summary, racecheck with one of hazards.
_CLEAN = re.compile(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)")


@dataclass(frozen=True)
class PartResult:
    """What one part found.

    Attributes:
        part: one of :data:`PARTS`.
        outcome: "passed", "failed" or "not run".
        detail: its last words, or why it was not run.
        seconds: how long it took.
    """

    part: str
    outcome: str
    detail: str
    seconds: float = 0.0


def run_part(part: str) -> PartResult:
    """Run one part; its output goes to the terminal as it comes."""
    command, environment = command_of(part)
    if not command:
        return PartResult(part, "not run", environment["why"])
    begin = time.perf_counter()
    code, lines = _run(command, environment)
    seconds = time.perf_counter() - begin
    if code is None:
        return PartResult(part, "failed", f"took longer than {MOST_SECONDS} s", seconds)
    if code == 0 and (part not in SANITIZERS or any(_CLEAN.search(line) for line in lines)):
        return PartResult(part, "passed", lines[-1] if lines else "", seconds)
    return PartResult(part, "failed", " | ".join(_said_of_failure(lines)) or f"exit code {code}", seconds)


def _said_of_failure(lines: list[str]) -> list[str]:
    """What a sanitizer found first, which the terminal has long forgotten, and the last line."""
    found = [line.strip("= ") for line in lines[:-1] if line.startswith("=========") and line.strip("= ")]
    return [*found[1 : 1 + FOUND_FIRST], *lines[-1:]]  # the first line is the sanitizer's name


def command_of(part: str) -> tuple[list[str], dict[str, str]]:
    """The command of a part and what it adds to the environment; no command, and ``why``, where it cannot be run."""
    if part == "kernels":
        return KERNEL_CHECKS, {}
    if part == "tests":
        if not (ROOT / "tests").is_dir():
            return [], {"why": "the tests are in the source repository, not in the installed package"}
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(ROOT / "tests")], {}
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return [], {"why": "compute-sanitizer, a part of the CUDA toolkit, was not found on the PATH"}
    options = ["--tool", part, "--error-exitcode", "9", "--target-processes", "application-only"]
    options += ["--kernel-name-exclude", ",".join(f"kns={name}" for name in OTHERS)]
    # Every tensor is an allocation of its own then, and what lies beyond its end is no tensor.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if part == "memcheck" else {}
    return [tool, *options, *KERNEL_CHECKS, "--quick"], alone


def _run(command: list[str], environment: dict[str, str]) -> tuple[int | None, list[str]]:
    """Exit code, None where it was stopped, and the lines that it printed.

    A sanitizer's work is done by a child of its own, which holds the pipe too: the whole group is stopped.
    """
    lines: list[str] = []
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        _kill_group(process)

    late = threading.Timer(MOST_SECONDS, stop)
    late.start()
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.strip():
                lines.append(line.strip())
        code = process.wait()
        return (None if stopped.is_set() else code), lines
    finally:
        late.cancel()
        _kill_group(process)
        process.wait()


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a session, and all that it has started there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one did not pass, 2 without a GPU or where the report cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.evaluation.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which parts, in this order")
    parser.add_argument("--report", type=Path, metavar="JSON", help="also write what was found to this file")
    args = parser.parse_args(words)
    try:
        _require_writable(args.report)
        require_gpu("a check of the kernels", otherwise="")
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = [run_part(part) for part in args.parts]
    print(f"\n{_gpu()}")
    for result in results:
        print(f"{result.part:<10} {result.outcome:<8} {result.seconds:6.1f} s  {result.detail}")
    if args.report is not None:
        report = {"gpu": _gpu(), "version": workbench.__version__, "parts": [asdict(result) for result in results]}
        with output_files({"report": args.report}) as drafts:
            drafts["report"].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(any(result.outcome != "passed" for result in results))


def _require_writable(path: Path | None) -> None:
    """Refuse the path of a report before minutes of work.

    Raises:
        WorkbenchError: it is a folder, lies in none, or may not be written.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in no folder: {path.parent} does not exist"
        raise WorkbenchError(f"--report {path} {what}", fix="give the path of a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise WorkbenchError(f"--report {path} may not be written", fix="give a path of yours")


def _gpu() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
