"""A private copy of the notebooks beside a link to the demo model, so that a run leaves the working tree alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def notebooks(tmp_path: Path, demo_model_dir: Path) -> Path:
    """A folder with every notebook; ``../demo/model`` is the demo model."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "model").symlink_to(demo_model_dir)
    return Path(shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*")))
