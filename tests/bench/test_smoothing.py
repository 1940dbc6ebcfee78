"""The smoothed view: equal to what a conversion collects, and only changed layers are folded anew."""

from __future__ import annotations

import pytest
import torch

from workbench.bench import smoothing
from workbench.bench.smoothing import SmoothedView
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import Cancelled
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.smoothed_ranges import SmoothedRanges
from workbench.quantization.smoothquant import smooth_layer
from workbench.recipe import SmoothQuant


@pytest.fixture
def source(random_model_dir):
    return HFCheckpoint.open(random_model_dir())


@pytest.fixture
def ranges(random_calibration):
    return ActivationRanges.load(random_calibration)


def test_it_is_what_a_conversion_collects(source, ranges):
    how = SmoothQuant(alpha=0.6, alpha_by_group={"layers.1.down": 0.3})
    collected = SmoothedRanges(ranges, source.config, how)
    for index in range(source.config.num_layers):
        collected.add(index, smooth_layer(source.layers(torch.float32)[index], index, source.config, ranges, how))
    wanted, found = collected.result(), SmoothedView(source, "cpu").ranges(ranges, how)
    assert wanted.tensors().keys() == found.tensors().keys()
    for name, tensor in wanted.tensors().items():
        assert torch.equal(tensor, found.tensors()[name]), name
    assert not torch.equal(found.input_absmax("layers.1.mlp.down"), ranges.input_absmax("layers.1.mlp.down"))


def test_without_smoothing_the_ranges_are_as_they_were(source, ranges):
    view = SmoothedView(source, "cpu")
    assert view.ranges(ranges, None) is ranges
    assert view.ranges(ranges, SmoothQuant(groups=())) is ranges


def test_only_changed_layers_are_folded_again(source, ranges, monkeypatch):
    folded = []

    def counted(layer, index, *rest):
        folded.append(index)
        return smooth_layer(layer, index, *rest)

    monkeypatch.setattr(smoothing, "smooth_layer", counted)
    view = SmoothedView(source, "cpu")
    view.ranges(ranges, SmoothQuant())
    view.ranges(ranges, SmoothQuant(alpha_by_group={"layers.1.o": 0.2}))
    assert folded == [0, 1, 1]
    view.ranges(ranges | ranges, SmoothQuant(alpha_by_group={"layers.1.o": 0.2}))
    assert folded == [0, 1, 1, 0, 1]


def test_it_reports_and_can_be_stopped(source, ranges):
    def stop(event):
        assert event.unit == "layers"
        raise Cancelled("enough")

    view = SmoothedView(source, "cpu")
    with pytest.raises(Cancelled):
        view.ranges(ranges, SmoothQuant(), stop)
    assert view.ranges(ranges, SmoothQuant()) is not ranges
