"""What tests of the alpha panel do and look at."""

from __future__ import annotations

from workbench.ui.alpha_panel import AlphaPanel
from workbench.ui.alpha_rows import GroupRow

SECONDS = 60


def row(panel: AlphaPanel, group: str) -> GroupRow:
    return panel.view.rows[group]


def finish(panel: AlphaPanel) -> None:
    """Wait for the job and what it causes."""
    assert panel.view.work.job_panel is not None
    panel.view.work.job_panel.job.wait(SECONDS)
    panel.settle()
