"""Ranges of dummy weights fit their model and no other."""

from __future__ import annotations

import pytest

from workbench.checkpoint.dummy_model import DummyModel
from workbench.errors import CheckpointError
from workbench.model.presets import PRESETS, Sizes, resized
from workbench.quantization.dummy_ranges import PEAK, dummy_ranges
from workbench.quantization.observed import check_fits

SMALL = resized(
    PRESETS["internlm2-7b"], Sizes(n_layer=2, n_embd=64, n_head=4, n_kv_head=2, inter_size=96, vocab_size=50)
)


def test_they_fit_the_model() -> None:
    model = DummyModel(SMALL)
    ranges = dummy_ranges(model)
    check_fits(ranges, SMALL)
    ranges.require_model(model.fingerprint())
    maxima = ranges.input_absmax("layers.1.mlp.down")
    assert maxima.shape == (96,)
    assert PEAK <= float(maxima.min()) < float(maxima.max()) <= 2 * PEAK


def test_they_are_of_that_model_alone() -> None:
    with pytest.raises(CheckpointError):
        dummy_ranges(DummyModel(SMALL)).require_model(DummyModel(SMALL, seed=1).fingerprint())
