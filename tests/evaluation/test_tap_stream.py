from __future__ import annotations

import threading

import pytest
import torch

from workbench.evaluation.tap_stream import TapStream

IDS = torch.zeros(1, 2, dtype=torch.int64)


class Counting:
    """Offers taps "0", "1", ... and remembers how far it got."""

    def __init__(self, taps, error=None):
        self.taps, self.error, self.offered = taps, error, 0

    def logits(self, ids, on_tap=None):
        for index in range(self.taps):
            self.offered += 1
            on_tap(str(index), torch.full((1,), float(index)))
        if self.error is not None:
            raise self.error
        return ids


def test_the_pass_runs_no_further_than_asked():
    model = Counting(5)
    with TapStream(model, IDS) as stream:
        assert model.offered == 0
        assert stream.take("0") == 0
        assert stream.take("1") == 1
        assert model.offered == 2


def test_taps_in_another_order_are_found():
    with TapStream(Counting(3), IDS) as stream:
        assert [float(stream.take(name)) for name in ("2", "0", "1")] == [2, 0, 1]


def test_a_tap_that_the_pass_lacks_is_none_and_each_is_given_once():
    with TapStream(Counting(2), IDS) as stream:
        assert stream.take("unknown") is None
        assert stream.take("1") == 1
        assert stream.take("1") is None


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    with TapStream(Counting(5), IDS) as stream:
        stream.take("0")
    assert threading.active_count() == before


def test_leaving_unasked_never_runs_the_pass():
    model = Counting(5)
    with TapStream(model, IDS):
        pass
    assert model.offered == 0


def test_an_error_of_the_pass_reaches_the_asker():
    with TapStream(Counting(1, ZeroDivisionError("odd")), IDS) as stream:
        stream.take("0")
        with pytest.raises(ZeroDivisionError, match="odd"):
            stream.take("1")
