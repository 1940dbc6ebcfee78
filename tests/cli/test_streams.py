"""Streams whose reader leaves, and those that were never there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.cli.main import main
from workbench.cli.streams import PatientStream

# A command that says much, then works, then says more and ends as its gate says.
PLANTED = """
import argparse, sys
from pathlib import Path
from workbench.cli import main as module
from workbench.cli.command import Command, Outcome

def run(args):
    for _ in range(3):
        print("x" * 100_000, flush=True)
        print("y" * 100_000, file=sys.stderr, flush=True)
    args.out.write_text("the work")
    print("done")
    return Outcome({"figure": 1}, passed=args.passed)

def add_flags(parser):
    parser.add_argument("--out", type=Path)
    parser.add_argument("--passed", action="store_true")

module.load_command = lambda _: Command("planted", "Planted.", "workbench planted", add_flags, run)
sys.exit(module.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("words", "code"), [(["--passed"], 0), ([], 1)])
def test_the_work_goes_on_when_the_reader_leaves(tmp_path: Path, words: list[str], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    files = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "x.json")]
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, "planted", *words, *files], stdout=writer, stderr=writer, check=False
    )
    os.close(writer)
    assert done.returncode == code
    assert (tmp_path / "out").read_text() == "the work"
    assert json.loads((tmp_path / "x.json").read_text())["exit_code"] == code


def test_a_stream_passes_on_what_is_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        stream = PatientStream(file)
        assert stream.write("abc") == 3
        stream.flush()
        assert stream.name == file.name
        assert not stream.isatty()
    assert (tmp_path / "file").read_text() == "abc"


def test_other_errors_of_a_stream_are_not_swallowed() -> None:
    with open("/dev/full", "w") as full:
        stream = PatientStream(full)
        stream.write("abc")
        with pytest.raises(OSError, match="No space left"):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_streams_that_were_closed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["--version"]) == 0
    assert main(["nonsense"]) == 2
