"""JupyterLab with private folders, and a headless Chromium that looks at it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chromium import CHROMIUM, FLAGS

START_SECONDS = 60
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    url: str
    token: str


@contextlib.contextmanager
def running_lab(root: Path, private: Path) -> Iterator[Lab]:
    """JupyterLab on ``root``; its configuration, data and log live below ``private``."""
    port, token = _free_port(), secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", "--ServerApp.port_retries=0"),
        "--LabApp.expose_app_in_browser=True",
    ]
    private.mkdir()
    with (private / "lab.log").open("w") as log:
        process = subprocess.Popen(command, env=_environment(private), stdout=log, stderr=log)
        try:
            lab = Lab(f"http://127.0.0.1:{port}", token)
            _wait_until_up(lab, process, private / "lab.log")
            yield lab
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def open_notebook(lab: Lab, name: str) -> Iterator[Any]:
    """A page of 1200 px with the notebook open and its kernel ready; scroll bars take room, as on a person's screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(FLAGS), ignore_default_args=["--hide-scrollbars"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
        page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext", timeout=60_000)
        page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.isReady", timeout=60_000)
        page.wait_for_function("window.jupyterapp.shell.currentWidget.isRevealed ?? true", timeout=60_000)
        try:
            yield page
        finally:
            browser.close()


@contextlib.contextmanager
def notebook_that_ran(notebooks: Path, private: Path, name: str) -> Iterator[Any]:
    """A page with the notebook ``name`` after all its cells, alone on the screen; no script may fail on it."""
    SCREENSHOTS.mkdir(exist_ok=True)
    with running_lab(notebooks.parent, private) as lab, open_notebook(lab, f"notebooks/{name}") as page:
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        command(page, "application:toggle-left-area")
        assert command(page, "notebook:run-all-cells"), "a cell failed, or all of them took too long"
        yield page
        assert complaints == []


def command(page: Any, name: str, arguments: dict[str, Any] | None = None, limit_ms: int = 240_000) -> Any:
    """What a JupyterLab command returns; None when it takes longer than ``limit_ms``."""
    script = """([name, given, limit]) => Promise.race([
        window.jupyterapp.commands.execute(name, given),
        new Promise((resolve) => setTimeout(() => resolve(null), limit))])"""
    return page.evaluate(script, [name, arguments or {}, limit_ms])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(private: Path) -> dict[str, str]:
    names = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    settings = private / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    return os.environ | {variable: str(private / folder) for variable, folder in names.items()}


def _wait_until_up(lab: Lab, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=2).read()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
