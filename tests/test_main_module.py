from __future__ import annotations

import subprocess
import sys

import workbench


def test_the_package_is_the_command() -> None:
    told = subprocess.run([sys.executable, "-m", "workbench", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"workbench {workbench.__version__}\n"
