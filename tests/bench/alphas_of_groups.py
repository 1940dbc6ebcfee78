"""The alphas that a bench's recipe states group by group."""

from __future__ import annotations

from workbench.bench.state import BenchState


def own_alphas(state: BenchState) -> dict[str, float]:
    """``{group: alpha}`` of a state whose recipe smooths."""
    assert state.smoothing is not None
    return dict(state.smoothing.alpha_by_group)
