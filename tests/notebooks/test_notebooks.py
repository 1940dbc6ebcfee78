"""Every notebook runs from top to bottom, and stays thin: the code belongs to the package."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FILES = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
MOST_LINES = 10


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks():
    assert "00_start_here" in {path.stem for path in FILES}


def test_cells_are_thin(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= MOST_LINES, cell.source
            assert not any(line.lstrip().startswith(("def ", "class ", "lambda")) for line in lines), cell.source


def test_every_code_cell_is_introduced(notebook):
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            assert before is not None
            assert before.cell_type == "markdown", cell.source
            assert before.source.rstrip().endswith((".", "?", ":")), before.source


def test_outputs_are_stripped(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs(path, notebooks):
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(notebooks)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" in kinds
    assert "image/png" in kinds
    if path.stem == "00_start_here":
        texts = "".join(output.get("text", "") for output in outputs)
        assert "same model" in texts
        assert "network check passed: True" in texts
