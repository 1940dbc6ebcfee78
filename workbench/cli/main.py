"""The console script: picks the command, runs it, and turns what happened into an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.cli.command import BAD_INPUT, CANCELLED, DONE, GATE_FAILED, Command, UsageError, write_json
from workbench.errors import Cancelled, GateError, WorkbenchError, nearest

# In the order in which a person meets them. Each module holds one COMMAND.
MODULES = {
    "demo-model": "workbench.cli.demo_model",
    "calibrate": "workbench.cli.calibrate",
    "convert": "workbench.cli.convert",
    "build": "workbench.cli.build",
    "run": "workbench.cli.run",
    "summarize": "workbench.cli.summarize",
    "compare": "workbench.cli.compare",
    "benchmark": "workbench.cli.benchmark",
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
            "  workbench convert --model_dir demo/model --weights int8 -o demo/checkpoint",
            "  workbench COMMAND --help    flags of one command, with an example",
            "",
            "exit codes: 0 done, 1 a gate failed, 2 bad input, 130 cancelled",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, without the program's name; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        code = _run(words)
        sys.stdout.flush()
    except WorkbenchError as error:
        return _say(f"error: {error}", _code(error), show_trace=debug)
    except (KeyboardInterrupt, Cancelled) as stop:
        return _say(str(stop) or "cancelled, nothing was left behind", CANCELLED, show_trace=debug)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): keep the interpreter's own flush at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
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
    _require_writable(args.json)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            outcome = command.run(args)
    except WorkbenchError as error:
        _record(args, command.name, _code(error), {"error": {"kind": type(error).__name__, "message": str(error)}})
        raise
    code = DONE if outcome.passed else GATE_FAILED
    _record(args, command.name, code, {"result": outcome.result})
    return code


def _code(error: WorkbenchError) -> int:
    return GATE_FAILED if isinstance(error, GateError) else BAD_INPUT


def _require_writable(path: Path | None) -> None:
    """Refuse a --json path at once, not after minutes of work."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"--json {path}: the folder {path.parent} does not exist", fix="make it, or give another path")


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
