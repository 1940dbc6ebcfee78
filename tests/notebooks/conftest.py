"""A private copy of the notebooks beside a link to the demo model, so that a run leaves the working tree alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of all notebooks: what one has calibrated the next one finds, as on a person's machine."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def notebooks(tmp_path: Path, demo_model_dir: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every notebook; ``../demo/model`` is the demo model."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(shared_cache))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "model").symlink_to(demo_model_dir)
    return Path(shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*")))
