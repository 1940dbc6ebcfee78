"""Layer differences made by hand, so that widgets are tested without models."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch

from workbench.evaluation.agreement import Agreement
from workbench.evaluation.layer_diff import DiffOptions, LayerDiff
from workbench.evaluation.tap_error import TapError
from workbench.model.taps import split_tap, tap_names


@pytest.fixture(scope="session")
def make_diff() -> Callable[..., LayerDiff]:
    """``make_diff(layers=2, spoil={tap: error})``: every tap errs by 1e-3 of its size, or as ``spoil`` says."""

    def make(*, layers: int = 2, spoil: dict[str, float] | None = None) -> LayerDiff:
        generator = torch.Generator().manual_seed(0)
        rows, samples = [], {}
        for tap in tap_names(layers):
            reference = torch.randn(50, generator=generator)
            noise = torch.randn(50, generator=generator)
            error = TapError(tap, 1)
            error.add(reference, reference + (spoil or {}).get(tap, 1e-3) * noise)
            layer, site = split_tap(tap)
            rows.append({"tap": tap, "layer": layer, "site": site, **vars(error.row())})
            samples[tap] = error.samples()
        frame = pd.DataFrame(rows).astype({"layer": "Int64"})
        summary = Agreement(0.004, 0.97, 0.999, 0.03, 16.0, 16.1, 50)
        return LayerDiff(frame, summary, DiffOptions("float16"), windows=1, tokens=50, _samples=samples)

    return make
