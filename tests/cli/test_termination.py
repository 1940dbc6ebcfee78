"""SIGTERM: orderly, once, and only where signals can be heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workbench.cli.main import main
from workbench.cli.termination import Termination

# A command that writes a folder, says that it does, and then works for long.
PLANTED = """
import sys, time
from pathlib import Path
from workbench.checkpoint.output_folder import output_folder
from workbench.cli import main as module
from workbench.cli.command import Command, Outcome

def run(args):
    with output_folder(Path(args.out), force=False, needed_bytes=0) as folder:
        (folder / "half").write_text("half")
        print("working", flush=True)
        time.sleep(60)
    return Outcome()

command = Command("planted", "Planted.", "workbench planted", lambda parser: parser.add_argument("out"), run)
module.load_command = lambda _: command
sys.exit(module.main(sys.argv[1:]))
"""


def test_a_terminated_command_leaves_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PLANTED, "planted", str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "working\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.stderr.read() == "workbench: cancelled, nothing was left behind\n"
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_a_second_request_does_not_interrupt_the_first() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Termination() as termination:
        assert not termination.came
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert termination.came
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_in_another_thread_leaves_signals_alone() -> None:
    before, codes = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert signal.getsignal(signal.SIGTERM) == before
