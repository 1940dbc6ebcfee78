"""The console script: picks the command, runs it, and turns what happened into an exit code."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from workbench import __version__
from workbench.cli.apart import require_apart
from workbench.cli.command import (
    BAD_INPUT,
    CANCELLED,
    DONE,
    GATE_FAILED,
    TERMINATED,
    Command,
    Unfinished,
    UsageError,
    gpu_memory_told,
    require_writable,
    write_json,
)
from workbench.cli.streams import patient_streams
from workbench.cli.termination import Termination
from workbench.errors import Cancelled, GateError, WorkbenchError, nearest

# In the order in which a person meets them. Each module holds one COMMAND.
MODULES = {
    "demo-model": "workbench.cli.demo_model",
    "plan": "workbench.cli.plan",
    "calibrate": "workbench.cli.calibrate",
    "convert": "workbench.cli.convert",
    "build": "workbench.cli.build",
    "run": "workbench.cli.run",
    "summarize": "workbench.cli.summarize",
    "compare": "workbench.cli.compare",
    "benchmark": "workbench.cli.benchmark",
}
# What a person can do about what the operating system refused.
REMEDIES = {
    errno.ENOSPC: "make room, or write to another disk",
    errno.EACCES: "give a path of yours",
    errno.EPERM: "give a path of yours",
    errno.EROFS: "give a path that can be written",
    errno.ENAMETOOLONG: "give a shorter name",
}


def load_command(name: str) -> Command:
    """The command of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in MODULES:
        raise UsageError(
            f"{name!r} is no command", allowed=", ".join(MODULES), fix=nearest(name, MODULES) or "see workbench --help"
        )
    command: Command = importlib.import_module(MODULES[name]).COMMAND
    return command


def overview() -> str:
    """The text of ``workbench --help``."""
    rows = [f"  {name:<12} {load_command(name).summary}" for name in MODULES]
    return "\n".join(
        [
            "usage: workbench COMMAND [flags]",
            "",
            "Quantize InternLM, build TensorRT engines, check them on a CPU, and compare them layer by layer.",
            "",
            "commands:",
            *rows,
            "",
            "example:",
            "  workbench demo-model demo/model",
            "  workbench convert --model_dir demo/model --weights int8 -o demo/int8",
            "  workbench COMMAND --help    flags of one command, with an example",
            "",
            "exit codes: 0 done, 1 a gate failed, 2 bad input, 130 cancelled, 143 terminated",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, without the program's name; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    with patient_streams(), Termination() as termination:
        try:
            code = _run(words)
            sys.stdout.flush()
        except WorkbenchError as error:
            return _say(f"error: {error}", _code(error), show_trace=debug)
        except OSError as error:
            return _say(f"error: {_mistake(error)}", BAD_INPUT, show_trace=debug)
        except (KeyboardInterrupt, Cancelled) as stop:
            code = TERMINATED if termination.came else CANCELLED
            return _say(str(stop) or "cancelled, nothing was left behind", code, show_trace=debug)
        return code


def _run(words: list[str]) -> int:
    """The overview or the version, or a command."""
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return DONE if words else BAD_INPUT
    if words[0] == "--version":
        print(f"workbench {__version__}")
        return DONE
    return _run_command(words)


def _run_command(words: list[str]) -> int:
    command = load_command(words[0])
    try:
        args = command.parse(words[1:])
    except SystemExit as end:  # argparse has printed --help
        return int(end.code or 0)
    for flag in ("json", *command.files):
        require_writable(f"--{flag}", getattr(args, flag))
    require_apart(args, ("json", *command.files))
    try:
        with warnings.catch_warnings(), gpu_memory_told():
            warnings.showwarning = _warn
            outcome = command.run(args)
    except Unfinished as end:
        _record_failure(args, command.name, end.cause, end.result)
        raise end.cause from end.cause.__cause__
    except (WorkbenchError, OSError) as error:
        _record_failure(args, command.name, error)
        raise
    code = DONE if outcome.passed else GATE_FAILED
    _record(args, command.name, code, {"result": outcome.result})
    return code


def _code(error: WorkbenchError) -> int:
    return GATE_FAILED if isinstance(error, GateError) else BAD_INPUT


def _mistake(error: OSError) -> UsageError:
    """What the operating system refused, as a sentence for the person who asked."""
    about = f"{error.filename}: " if error.filename else ""
    fix = REMEDIES.get(error.errno or 0, "add --debug to see where this was raised")
    return UsageError(f"{about}{error.strerror or error}", fix=fix)


def _record_failure(
    args: argparse.Namespace, command: str, error: WorkbenchError | OSError, result: dict[str, Any] | None = None
) -> None:
    """Write the error, and beside it what was found before."""
    told = _mistake(error) if isinstance(error, OSError) else error
    content: dict[str, Any] = {"kind": type(error).__name__, "message": str(told)}
    if isinstance(error, GateError) and error.details:
        content["details"] = error.details
    try:
        found = {} if result is None else {"result": result}
        _record(args, command, _code(told), {**found, "error": content})
    except UsageError as second:  # the first is what the person asks about
        _say(f"warning: {second}", BAD_INPUT, show_trace=False)


def _record(args: argparse.Namespace, command: str, exit_code: int, content: dict[str, Any]) -> None:
    if args.json is not None:
        write_json(args.json, {"command": command, "version": __version__, "exit_code": exit_code, **content})


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a sentence, without the line of code that raised it."""
    print(f"workbench: warning: {message}", file=sys.stderr)


def _say(text: str, code: int, *, show_trace: bool) -> int:
    if show_trace:
        traceback.print_exc()
    print(f"workbench: {text}", file=sys.stderr)
    return code
